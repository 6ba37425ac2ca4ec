"""Fuzzing: every decoder under atheris, and conversations of real clients that are changed and played to a broker.

The two go on at the same time. The decoders are the uncompiled source's, so that the coverage is known; what was worth
keeping of their inputs is then given to the installed broker as well, whose compiled modules must come to the same.
"""

from __future__ import annotations

from faults.report import Assignment, Report


def run(assignment: Assignment) -> Report:
    """All decoders, or as many of them as there is time for, and conversations as long."""
    # The engine instruments the broker's modules as they are imported: this package must not have done so before.
    from faults.fuzz import campaign

    return campaign.run(assignment)
