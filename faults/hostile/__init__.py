"""Hostile peers: attacks on a running broker, while bystanders who do nothing wrong measure how long they wait.

Of each attack is looked at: the memory it takes, and that it is given back; how long any bystander waits, before and
during it, and what they lose; that the answers are the protocol's own; how much the log grows; that the process lives.
"""

from __future__ import annotations

from typing import Final

from faults.hostile.attacks import ATTACKS
from faults.hostile.campaign import Campaign, Outcome
from faults.report import Assignment, Failure, Report

# What all attacks take at full size, with what is measured around them.
SECONDS: Final = 120.0
SCALE_MIN: Final = 0.02


def run(assignment: Assignment) -> Report:
    """All attacks, each as large as there is time for."""
    scale = max(SCALE_MIN, min(1.0, assignment.seconds / SECONDS))
    report = attack(assignment, list(ATTACKS), scale)
    if scale >= 1.0 and report.done["attacks"] < len(ATTACKS):
        report.failures.append(
            Failure(f"{report.done['attacks']} of {len(ATTACKS)} attacks were run", (), _replay(assignment))
        )
    return report


def attack(assignment: Assignment, names: list[str], scale: float) -> Report:
    """These attacks, at a scale of 0 to 1."""
    report = Report()
    campaign = Campaign(assignment)
    history: list[str] = []
    try:
        for name in names:
            outcome = campaign.run(ATTACKS[name], scale)
            report.done["attacks"] += 1
            report.done["waits of bystanders measured"] += len(outcome.before) + len(outcome.during)
            report.figures[name] = outcome.row
            history.append(f"{name}: {outcome.row}")
            assignment.say(history[-1])
            _tell(assignment, report, campaign, outcome, history)
            if not campaign.target.is_alive:
                break
    finally:
        wrongs = campaign.stop()
    report.failures += [Failure(wrong, history + campaign.log_end, _replay(assignment)) for wrong in wrongs]
    return report


def _tell(assignment: Assignment, report: Report, campaign: Campaign, outcome: Outcome, history: list[str]) -> None:
    for wrong in outcome.wrongs:
        assignment.say(f"{outcome.attack.name}: {wrong}")
        report.failures.append(
            Failure(f"{outcome.attack.name}: {wrong}", history + campaign.log_end, _replay(assignment))
        )


def _replay(assignment: Assignment) -> str:
    return f"python -m faults hostile --seed {assignment.seed} --minutes {SECONDS / 60:g}"
