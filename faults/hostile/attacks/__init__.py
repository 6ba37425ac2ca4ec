"""The attacks, each a function in a module of its kind."""

from faults.hostile.attacks import connections, lengths, bombs, amqp, routing, kafka, groups, shares, transactions  # noqa: F401, I001
from faults.hostile.attacks.registry import ATTACKS, Attack

__all__ = ["ATTACKS", "Attack"]
