"""What keeps its state by records of its own: consumer groups, and whatever else is neither a queue nor a stream.

    decide -> record (`Ledger.recorded`, part of the turn's one journal frame) -> apply

Recovery applies the same records: first those by which a checkpoint says what there was, then the journal's. What a
record speaks of need not be there any more: its virtual host, topic or queue may be gone.
"""

from __future__ import annotations

from collections.abc import Sequence


class KeeperState:
    """Part of a keeper's state at the moment of a checkpoint: references to what never changes."""

    def records(self) -> list[bytes]:
        """What makes it again. Called on the writing thread."""
        raise NotImplementedError


class RecordKeeper:
    """`change` is the number of its records in the journal and in checkpoints; see `records.py`. Never reuse one."""

    change: int

    def restore(self, payload: bytes) -> None:
        """Apply a record. CorruptData where it makes no sense."""
        raise NotImplementedError

    def restored(self) -> None:
        """Recovery is over, of queues and streams too: go on from here."""
        raise NotImplementedError

    def capture(self) -> Sequence[KeeperState]:
        """What a checkpoint has to say of it."""
        raise NotImplementedError
