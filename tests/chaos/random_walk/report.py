# SPDX-License-Identifier: Apache-2.0
"""Random walks as tables: for the terminal and as a Markdown page."""

import importlib.metadata
import os
import platform
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..fault_storm.checker import Violation, Wrong, count
from .checker import Left, doubles
from .journal import Line

PACKAGES = ("prefect", "httpx", "sqlalchemy")

NAMES = {
    "kill": "processes killed",
    "pause": "processes stopped for longer than their lease",
    "person": "looks of the person",
    "collect": "collectors",
    "copied": "copies of the ledger by a process that has it open",
    "forked": "processes that forked and ended, and their child continued",
    "outside-copy": "copies of the ledger by another process",
    "move": "moves of the ledger after everything was killed",
    "backup": "backups by the command",
    "restore": "older backups put in the ledger's place",
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
    "leave": "one more submission allowed",
    "write-off": "given up",
    "abandon": "left to itself",
}


@dataclass(frozen=True)
class Outcome:
    """Outcome of one walk.

    Attributes:
        seed: Seed of the walk.
        seconds: Duration of the disturbances.
        all_seconds: Duration including the end, in which everything is settled.
        database: Database of the ledger.
        happened: Counts of the disturbances, by name.
        expected: Names of the disturbances that were switched on.
        faults: Counts of the submissions' faults, by kind.
        events: Events that the actors reported.
        left: State that was checked.
        incoming: Files that killed processes left behind, invisible in the storage.
        violations: All violations.
    """

    seed: int
    seconds: float
    all_seconds: float
    database: str
    happened: Counter[str]
    expected: Sequence[str]
    faults: dict[str, int]
    events: Sequence[Line]
    left: Left
    incoming: int
    violations: Sequence[Violation]

    @property
    def missing(self) -> list[str]:
        """Disturbances that were switched on and never happened."""
        return missing(self.expected, self.happened)


def missing(expected: Sequence[str], happened: Counter[str]) -> list[str]:
    """Return the names of disturbances that never happened."""
    return [
        name
        for name in expected
        if not any(key.startswith(REPORTED_AS.get(name, name)) for key in happened)
    ]


def _figures(outcome: Outcome) -> Iterable[tuple[str, object]]:
    left = outcome.left
    told = Counter(line["what"] for line in outcome.events)
    told["leave"] -= told["leave refused"]
    ends = Counter(line["error"] for line in outcome.events if line["what"] == "ended")
    yield "minutes of disturbances", f"{outcome.seconds / 60:.1f}"
    yield "minutes with the end", f"{outcome.all_seconds / 60:.1f}"
    yield "keys", len(left.keys)
    yield "purchases accepted", len(left.purchases)
    yield "submissions", sum(outcome.faults.values())
    for name, shown in FAULTS.items():
        yield f"- {shown}", outcome.faults.get(name, 0)
    yield "disturbances", outcome.happened.total()
    for name, number in sorted(outcome.happened.items(), key=lambda item: -item[1]):
        yield f"- {NAMES.get(name, name)}", number
    yield "decisions of the person", sum(told[name] for name in DECISIONS)
    for name, shown in DECISIONS.items():
        yield f"- {shown}", told[name]
    yield "runs on a key", ends.total()
    yield "- ended well", ends.pop("", 0)
    for name, number in ends.most_common():
        yield f"- {name}", number
    yield "files left in .incoming", outcome.incoming
    yield "bought again with leave", doubles(left) - count(Wrong.DUPLICATE, outcome.violations)
    yield "**paid twice without leave**", count(Wrong.DUPLICATE, outcome.violations)
    for kind in (one for one in Wrong if one is not Wrong.DUPLICATE):
        yield f"**{kind}**", count(kind, outcome.violations)


def summary(outcome: Outcome) -> str:
    """Return the figures for a terminal."""
    lines = [f"{name.strip('*'):<70}{figure:>8}" for name, figure in _figures(outcome)]
    never = [f"never happened: {name}" for name in outcome.missing]
    return "\n".join([*lines, *never, *_violations(outcome)])


def _violations(outcome: Outcome) -> list[str]:
    """Return each violation once, with the number of times that it was found."""
    found = Counter(map(str, outcome.violations))
    return [text if number == 1 else f"{text} ({number} times)" for text, number in found.items()]


def markdown(command: str, outcome: Outcome) -> str:
    """Return the whole page of one walk."""
    table = ["| | figure |", "| --- | ---: |"]
    table += [f"| {name} | {figure:,} |" if isinstance(figure, int) else f"| {name} | {figure} |"
              for name, figure in _figures(outcome)]  # fmt: skip
    parts = [
        _PAGE.format(command=command, versions=_versions(outcome)),
        f"## {outcome.database}, seed {outcome.seed}",
        "\n".join(table),
    ]
    if outcome.missing:
        parts.append("Never happened: " + ", ".join(outcome.missing) + ".")
    if outcome.violations:
        found = [f"- {violation}" for violation in _violations(outcome)]
        parts.append("\n".join(["## Not as promised", "", *found]))
    return "\n\n".join(parts) + "\n"


def _versions(outcome: Outcome) -> str:
    found = [f"{os.cpu_count()} cores, Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    found += [f"SQLite {sqlite3.sqlite_version}"] if outcome.database == "sqlite" else []
    return ", ".join(found)


_PAGE = """# Random walk

`{command}`

Four processes buy videos all the time, several keys each, and fight for the same keys. Their
service is a double that writes down what it accepts before it replies, and that misbehaves on about
a third of all submissions. Leases last two seconds and calls 1.5 seconds, so that an hour holds as
much as weeks of ordinary use. A generator with the seed chooses what is done to them and when:

- processes are killed, stopped for longer than their lease, and forked, and the ledger's server is
  restarted, crashed and killed;
- the ledger's file is copied by a process that has it open and by another one, moved after
  everything was killed, backed up, and replaced by an older backup;
- a row is deleted while a run has its purchase in hand;
- the storage is full, is not writable, and loses staged and stored files;
- a person looks at the service's list, as in its console, and decides about what is uncertain:
  adopts the id, allows one more submission, or gives it up.

In the end everything is settled, and every key is bought once more. Then a checker, which has tests
of its own, compares what the service accepted, the ledger and the storage. A key may have been
accepted once, and once more for each leave that the person had given before. Each purchase is in
the ledger under its key, unless the person submitted the key again afterwards. Each is stored as it
was served, nothing half is visible, and the database is sound.

The seed decides the disturbances and their order, and which submission meets which fault; which
process and key they meet depends on the machine, so figures differ from run to run.

Ran with {versions}."""
