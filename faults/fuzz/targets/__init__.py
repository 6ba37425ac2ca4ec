"""The decoders that are fuzzed, each a function in a module of its kind.

A target gets bytes, has the decoder read them, and checks what can be checked: that what is decoded can be encoded and
decoded again to the same, and that two ways to read the same agree. It shows what came of it, so that the compiled and
the uncompiled broker can be compared. Its seeds are made by the project's own encoders and by its clients' libraries.
"""

from faults.fuzz.targets import amqp, batches, connections, kafka, management, records, storage
from faults.fuzz.targets.target import TARGETS, Broken, Target

# Importing them has filled the table.
MODULES = (amqp, kafka, connections, batches, records, storage, management)

__all__ = ["MODULES", "TARGETS", "Broken", "Target"]
