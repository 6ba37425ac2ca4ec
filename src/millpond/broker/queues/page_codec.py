"""A page of a queue as one record batch, and back."""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from millpond.base.errors import CorruptData
from millpond.broker.message import Address, Message, Properties
from millpond.broker.queues.page import Page
from millpond.broker.records import MessageReader, record_header
from millpond.storage.record_batch import BatchBuilder, BatchHeader, RecordReader


@final
class PageWriter:
    """Encodes pages. Keeps its buffer from one page to the next."""

    def __init__(self) -> None:
        self._builder: Final = BatchBuilder()

    def encode(self, page: Page, base_offset: i64) -> tuple[bytes, int]:
        """The page's unsettled messages as a batch that covers [base_offset, page.end), and its newest timestamp.

        `base_offset` is where the log ends: the batches of a log tile the offsets, so the batch also covers what was
        settled since, and records keep their offsets within it.
        """
        builder = self._builder
        newest: i64 = 0
        address: Address | None = None
        properties: Properties | None = None
        key = b""
        header = b""
        offset = page.start
        for slot in page.entries:
            if slot is not None:
                message = slot.message
                timed = message.due_ms != 0
                if timed or message.address is not address or message.properties is not properties:
                    address = None if timed else message.address
                    properties = message.properties
                    key = message.address.routing_key.encode("utf-8", "surrogateescape")
                    header = record_header(message)
                builder.append(offset - base_offset, message.timestamp_ms, key, message.body, header)
                newest = max(newest, message.timestamp_ms)
            offset += 1
        return builder.finish(base_offset, page.end - 1 - base_offset), int(newest)


def decode_page(batch: bytes, end_offset: i64) -> tuple[list[i64], list[Message]]:
    """Offsets and messages of a batch whose checksum has been checked, and that should end before `end_offset`.
    CorruptData where it makes no sense, or is another one: the checksum does not cover the base offset."""
    header = BatchHeader(batch)
    if header.base_offset + header.last_offset_delta + 1 != end_offset:
        raise CorruptData(f"a page that should end at {end_offset} begins at {header.base_offset}")
    reader = RecordReader(batch)
    messages = MessageReader()
    offsets: list[i64] = []
    found: list[Message] = []
    while reader.next():
        offsets.append(reader.offset)
        found.append(messages.message(reader))
    return offsets, found
