"""Where the broker under attack listens, and what the operating system says of its process."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A running broker: its process and its listeners."""

    pid: int
    amqp: int
    kafka: int
    admin: int
    host: str = "127.0.0.1"

    @property
    def resident_bytes(self) -> int:
        """What the process has in memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES

    @property
    def descriptor_count(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def is_alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


def run_delay_ms(path: Path) -> float:
    """For how long a thread has been ready to run while the machine had no core for it, since it began."""
    return int(path.read_text().split()[1]) / 1e6
