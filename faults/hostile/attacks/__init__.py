"""The attacks, each a function in a module of its kind."""

from faults.hostile.attacks import (
    amqp,
    bombs,
    connections,
    groups,
    kafka,
    lengths,
    routing,
    shares,
    transactions,
)
from faults.hostile.attacks.registry import ATTACKS, Attack

# Importing them has filled the table.
MODULES = (connections, lengths, bombs, amqp, routing, kafka, groups, shares, transactions)

__all__ = ["ATTACKS", "MODULES", "Attack"]
