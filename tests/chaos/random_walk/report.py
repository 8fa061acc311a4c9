# SPDX-License-Identifier: Apache-2.0
"""Random walks as tables: for the terminal and as a Markdown page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..harness.checker import Violation, ViolationKind, count
from ..harness.markdown import machine, table, violations_section
from .checker import FinalState, repeated_purchases
from .journal import Line

PACKAGES = ("prefect", "httpx", "asyncpg")

NAMES = {
    "kill": "processes killed",
    "pause": "processes stopped for longer than their lease",
    "user": "rounds of the user's decisions",
    "collect": "collectors",
    "copied": "copies of the ledger by a process that has it open",
    "forked": "processes that forked and ended, while their child continued",
    "outside-copy": "copies of the ledger by another process",
    "move": "moves of the ledger after everything was killed",
    "backup": "backups by the command",
    "restore": "older backups put in place of the ledger",
    "restart": "restarts of PostgreSQL",
    "crash": "crashes of PostgreSQL",
    "kill-server": "PostgreSQL killed",
    "unwritable": "storage not writable",
    "full": "storage full",
    "clear-staging": "staged files deleted",
    "lose-video": "stored videos deleted",
}
REPORTED_AS = {"copy": "copied", "fork": "forked", "vanish": "row deleted while "}
"""Disturbances that are counted by the events of the actors."""

FAULTS = {
    "none": "answered well",
    "slow-reply": "answered slowly",
    "reset-before": "reset, not accepted",
    "busy": "503 of the service",
    "rate-limit": "429 of the service",
    "no-reply": "accepted, no reply",
    "unanswered": "accepted, a reply too late",
    "late": "accepted after the client gave up",
    "html": "accepted, a page under 200",
    "gateway": "accepted, a gateway's page under 502 or 504",
    "proxy-page": "accepted, a page under 301, 403, 407, 409, 418, 423 or 451",
}
DECISIONS = {
    "adopt": "adopted",
    "permission": "one more submission allowed",
    "write-off": "written off",
    "abandon": "abandoned",
}


@dataclass(frozen=True)
class Outcome:
    """Outcome of one walk.

    Attributes:
        seed: Seed of the walk.
        seconds: Duration of the disturbances.
        all_seconds: Duration including the end, in which everything is settled.
        database: Database of the ledger.
        counts: Counts of the disturbances, by name.
        expected: Names of the disturbances that were switched on.
        faults: Counts of the submissions' faults, by kind.
        events: Events that the actors reported.
        state: State that was checked.
        incoming: Staged files of killed processes, which are invisible in the storage.
        violations: All violations.
    """

    seed: int
    seconds: float
    all_seconds: float
    database: str
    counts: Counter[str]
    expected: Sequence[str]
    faults: dict[str, int]
    events: Sequence[Line]
    state: FinalState
    incoming: int
    violations: Sequence[Violation]

    @property
    def missing(self) -> list[str]:
        """Disturbances that were switched on and never happened."""
        return missing(self.expected, self.counts)


def missing(expected: Sequence[str], counts: Counter[str]) -> list[str]:
    """Return the names of disturbances that never happened."""
    return [
        name
        for name in expected
        if not any(key.startswith(REPORTED_AS.get(name, name)) for key in counts)
    ]


def _figures(outcome: Outcome) -> Iterable[tuple[str, object]]:
    state = outcome.state
    events = Counter(line["what"] for line in outcome.events)
    events["permission"] -= events["permission refused"]
    ends = Counter(line["error"] for line in outcome.events if line["what"] == "ended")
    yield "minutes of disturbances", f"{outcome.seconds / 60:.1f}"
    yield "minutes with the end", f"{outcome.all_seconds / 60:.1f}"
    yield "keys", len(state.keys)
    yield "purchases accepted", len(state.purchases)
    yield "submissions", sum(outcome.faults.values())
    for name, label in FAULTS.items():
        yield f"- {label}", outcome.faults.get(name, 0)
    yield "disturbances", outcome.counts.total()
    for name, number in sorted(outcome.counts.items(), key=lambda item: -item[1]):
        yield f"- {NAMES.get(name, name)}", number
    yield "decisions of the user", sum(events[name] for name in DECISIONS)
    for name, label in DECISIONS.items():
        yield f"- {label}", events[name]
    yield "runs on a key", ends.total()
    yield "- ended well", ends.pop("", 0)
    for name, number in ends.most_common():
        yield f"- {name}", number
    yield "files left in .incoming", outcome.incoming
    yield (
        "bought again with permission",
        repeated_purchases(state) - count(ViolationKind.DUPLICATE, outcome.violations),
    )
    yield "**paid twice without permission**", count(ViolationKind.DUPLICATE, outcome.violations)
    for kind in (kind for kind in ViolationKind if kind is not ViolationKind.DUPLICATE):
        yield f"**{kind}**", count(kind, outcome.violations)


def summary(outcome: Outcome) -> str:
    """Return the figures for a terminal."""
    rows = [(name.strip("*"), figure) for name, figure in _rows(outcome)]
    never = [f"never happened: {name}" for name in outcome.missing]
    return "\n".join([table(["", "figure"], rows), *never])


def _rows(outcome: Outcome) -> list[tuple[str, str]]:
    return [
        (name, f"{figure:,}" if isinstance(figure, int) else str(figure))
        for name, figure in _figures(outcome)
    ]


def distinct_violations(outcome: Outcome) -> list[str]:
    """Return each violation once, with the number of times that it was found."""
    found = Counter(map(str, outcome.violations))
    return [text if number == 1 else f"{text} ({number} times)" for text, number in found.items()]


def markdown(command: str, outcome: Outcome) -> str:
    """Return the whole page of one walk."""
    parts = [
        _PAGE.format(command=command, versions=machine(*PACKAGES)),
        f"## {outcome.database}, seed {outcome.seed}",
        table(["", "figure"], _rows(outcome)),
    ]
    if outcome.missing:
        parts.append("Never happened: " + ", ".join(outcome.missing) + ".")
    return "\n\n".join([*parts, *violations_section(distinct_violations(outcome))]) + "\n"


_PAGE = """# Random walk

`{command}`

Four processes continuously buy videos, several keys each, and compete for the same keys. Their
service is a double that records what it accepts before it replies, and that injects faults into
about a third of all submissions. Leases last two seconds and calls 1.5 seconds, so that an hour
corresponds to weeks of ordinary use. A random generator chooses the disturbances and their times:

- processes are killed, paused for longer than their lease, and forked, and the ledger's server is
  restarted, crashed and killed;
- the ledger's file is copied by a process that has it open and by another one, moved after
  everything was killed, backed up, and replaced by an older backup;
- a row is deleted while a run works on its purchase;
- the storage is full, is not writable, and loses staged and stored files;
- a simulated user looks at the service's list, as in its console, and resolves uncertain
  submissions: adopts the id, allows one more submission, or writes it off.

At the end, all generations are finished, and every key is bought once more. Then a checker, which
has its own tests, compares what the service accepted, the ledger and the storage. A key may have
been accepted once, and once more for each resubmission that the user allowed before. Each purchase
is in the ledger under its key, unless the user submitted the key again afterwards. Each video is
stored as it was served, no incomplete file is visible, and the database passes its integrity check.

The seed determines the disturbances, their order, and the fault of each submission. Which process
and key are affected depends on the machine, so the figures vary between runs.

Ran with {versions}"""
