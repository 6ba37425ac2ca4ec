"""What is measured. A workload is a line in `WORKLOADS`: its generator options, and what is expected of Millpond.

Every workload publishes, delivers and acknowledges 100-byte bodies over one publishing and one consuming connection;
the generator's own option texts (`amqp_load --help`) say the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    options: tuple[str, ...]
    rate_ratio_min: float | None = None
    """Expected of Millpond: at least this many times the peer's messages per second."""
    cpu_ratio_max: float | None = None
    """Expected of Millpond: at most this share of the peer's broker CPU per message."""

    @property
    def is_confirmed(self) -> bool:
        return "--confirms" in self.options

    @property
    def is_paced(self) -> bool:
        """Whether the rate is given, so that only latency and CPU tell brokers apart."""
        return "--rate" in self.options


_CONFIRMED: Final = ("--durable", "--persistent", "--confirms", "--outstanding", "1000")
# A client that writes each publish and each acknowledgement by itself, as most libraries do.
_CHATTY: Final = ("--batch", "1", "--ack-every", "1")
_PACED: Final = ("--rate", "5000", *_CHATTY)

WORKLOADS: Final = (
    Workload("transient", "transient, bulk", (), rate_ratio_min=10, cpu_ratio_max=1 / 20),
    Workload("confirmed", "persistent, confirmed, 1,000 outstanding", _CONFIRMED, rate_ratio_min=10),
    Workload(
        "confirmed-100-queues",
        "the same over 100 durable queues in turn",
        (*_CONFIRMED, "--queues", "100"),
        rate_ratio_min=10,
    ),
    Workload(
        "confirmed-1000-queues",
        "the same over 1,000 durable queues in turn",
        (*_CONFIRMED, "--queues", "1000"),
        rate_ratio_min=10,
    ),
    Workload("chatty", "transient, one message and one ack per send", _CHATTY),
    Workload("latency", "transient at 5,000/s", _PACED),
    Workload("latency-confirmed", "persistent, confirmed at 5,000/s", (*_CONFIRMED, *_PACED)),
)
