"""How a member of a consumer group comes to its target: first it gives up what it is not to have any more, then it is
given what nobody else has.

    SETTLED ──another target──> REVOKING ──it owns it no more──> SETTLED, or AWAITING while others have yet to let go

The states and what leads from one to the other are those of KIP-848 (Apache Kafka's `CurrentAssignmentBuilder`).
"""

from __future__ import annotations

from collections.abc import Container

from millpond.broker.groups.modern_records import AWAITING, REVOKING, SETTLED, Assignment, CurrentAssignment

_NONE: frozenset[int] = frozenset()


def reconciled(
    current: CurrentAssignment,
    epoch: int,
    target: Assignment,
    owners: Container[tuple[bytes, int]],
    owned: Assignment | None,
) -> CurrentAssignment:
    """The next step of a member towards its `target`, which is that of the assignment epoch `epoch`; what it was where
    there is none. `owners` knows of every partition that somebody has; `owned` is what the member says it has, None
    where it does not say."""
    if current.state == REVOKING:
        if _has_any(owned, current.revoking):
            return current
        return _next(current, current.epoch + 1, epoch, target, owners, owned)
    if current.state == SETTLED and current.epoch == epoch:
        return current
    return _next(current, current.epoch, epoch, target, owners, owned)


def _next(
    current: CurrentAssignment,
    member_epoch: int,
    epoch: int,
    target: Assignment,
    owners: Container[tuple[bytes, int]],
    owned: Assignment | None,
) -> CurrentAssignment:
    assigned: dict[bytes, frozenset[int]] = {}
    revoking: dict[bytes, frozenset[int]] = {}
    awaits_others = False
    for topic_id in sorted(current.assigned.keys() | target.keys()):
        before, wanted = current.assigned.get(topic_id, _NONE), target.get(topic_id, _NONE)
        free = frozenset([number for number in wanted - before if (topic_id, number) not in owners])
        awaits_others = awaits_others or len(free) < len(wanted - before)
        if before - wanted:
            revoking[topic_id] = before - wanted
        if before & wanted or free:
            assigned[topic_id] = (before & wanted) | free
    if revoking and _has_any(owned, revoking):
        kept = {topic_id: numbers & current.assigned.get(topic_id, _NONE) for topic_id, numbers in assigned.items()}
        kept = {topic_id: numbers for topic_id, numbers in kept.items() if numbers}
        return CurrentAssignment(member_epoch, current.epoch, REVOKING, kept, revoking)
    return CurrentAssignment(epoch, current.epoch, AWAITING if awaits_others else SETTLED, assigned)


def _has_any(owned: Assignment | None, of: Assignment) -> bool:
    """Whether a member still has partitions. Who does not say has them."""
    if owned is None:
        return True
    return any(numbers & of.get(topic_id, _NONE) for topic_id, numbers in owned.items())
