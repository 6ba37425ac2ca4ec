"""Overload: publishers that are faster than the disk, which then fills up, becomes slow, and breaks.

Publishers of AMQP (confirms) and of Kafka (acks=all, idempotent) send without end, consumers are gone or stuck. What is
promised: publishers are held back and told so, nothing is confirmed that is not kept, memory stays within its budget,
the management API tells of the alarm while it lasts, and when the disk has recovered everything that was confirmed is
there, in its order, and is drained exactly once.
"""

from __future__ import annotations

from faults.overload.campaign import Campaign
from faults.report import Assignment, Report


def run(assignment: Assignment) -> Report:
    """All that a disk does, one thing after the other, then the drain."""
    return Campaign(assignment).run()
