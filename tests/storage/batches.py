"""Record batches that only tests make."""

from __future__ import annotations

import struct

from crc32c import crc32c


def produced_by(
    batch: bytes, producer_id: int, producer_epoch: int, base_sequence: int, records: bytes | None = None
) -> bytes:
    """The batch of a producer that numbers what it sends; with other bytes for records where they are given."""
    records = batch[61:] if records is None else records
    checked = batch[21:43] + struct.pack(">qhi", producer_id, producer_epoch, base_sequence) + batch[57:61] + records
    length = struct.pack(">i", len(checked) + 9)
    return batch[:8] + length + batch[12:17] + struct.pack(">I", crc32c(checked)) + checked
