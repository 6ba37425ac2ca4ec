"""What is to be written one after the other, in as few pieces as are worth their copying."""

from __future__ import annotations

from millpond.base.limits import WRITE_BYTES_APART


def joined(chunks: list[bytes]) -> list[bytes]:
    """The same with what is small put together: a write for each of it costs more than to copy it."""
    pieces: list[bytes] = []
    small: list[bytes] = []
    for chunk in chunks:
        if len(chunk) < WRITE_BYTES_APART:
            small.append(chunk)
            continue
        if small:
            pieces.append(b"".join(small))
            small = []
        pieces.append(chunk)
    if small:
        pieces.append(small[0] if len(small) == 1 else b"".join(small))
    return pieces
