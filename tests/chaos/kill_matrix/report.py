# SPDX-License-Identifier: Apache-2.0
"""The matrix as a Markdown page, which the tallies alone determine."""

import importlib.metadata
import platform
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .plan import Boundary, Database, How, Way
from .run_case import Tally

PACKAGES = ("prefect", "sqlalchemy", "asyncpg", "httpx")


@dataclass(frozen=True)
class Run:
    """One run of the matrix.

    Attributes:
        command: Command that repeats it.
        seed: Seed of its plan.
        seconds: Duration of the run.
        postgresql: Version of PostgreSQL, or an empty text.
        tallies: Result of each case.
        problems: Violations of the promises.
    """

    command: str
    seed: int
    seconds: float
    postgresql: str
    tallies: Sequence[Tally]
    problems: Sequence[str]


def versions(postgresql: str) -> str:
    """Return the versions that it ran on, in one line."""
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    found.append(f"SQLite {sqlite3.sqlite_version}")
    found += [f"PostgreSQL {postgresql}"] if postgresql else []
    return ", ".join([*found, f"{platform.system()} {platform.machine()}"])


def summary(run: Run) -> str:
    """Return the totals in one sentence."""
    of = run.tallies
    kills = sum(tally.case.how is How.KILL for tally in of)
    return (
        f"{kills} kills and {len(of) - kills} interruptions in {run.seconds:.0f} s: "
        f"{_sum(of, lambda tally: tally.standing == 'stored')} stored by recovery alone, "
        f"{_sum(of, lambda tally: tally.standing == 'uncertain')} uncertain and decided, "
        f"{_sum(of, lambda tally: tally.duplicates)} duplicates, "
        f"{_sum(of, lambda tally: tally.lost)} lost, "
        + (f"{len(run.problems)} not as promised" if run.problems else "all as promised")
    )


def markdown(run: Run) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION.format(command=run.command, total=_total(run))]
    for database in ("SQLite", "PostgreSQL"):
        here = [tally for tally in run.tallies if tally.case.database == database]
        if here:
            parts.append(_section(database, here))
    if run.problems:
        parts.append("## Not as promised\n\n" + "\n".join(f"- {text}" for text in run.problems))
    return "\n\n".join(parts) + "\n"


def _total(run: Run) -> str:
    rows = [
        ("Result", summary(run)),
        ("Victims", _victims(run)),
        ("Seed", str(run.seed)),
        ("Versions", versions(run.postgresql)),
    ]
    return "\n".join(f"- **{name}**: {value}." for name, value in rows)


def _victims(run: Run) -> str:
    """Return the kinds of processes that were struck."""
    of = run.tallies
    collectors = _sum(of, lambda tally: tally.case.collector)
    sync = _sum(of, lambda tally: tally.case.sync)
    return f"{len(of) - collectors} runs and {collectors} collectors, {sync} of them sync flows"


def _section(database: Database, tallies: Sequence[Tally]) -> str:
    kills = [tally for tally in tallies if tally.case.how is How.KILL]
    parts = [f"## {database}", "### Killed at", _table(kills, "boundary", Boundary, _boundary)]
    parts += ["### Recovered by", _table(kills, "recovery", Way, _way)]
    others = [tally for tally in tallies if tally.case.how is not How.KILL]
    if others:
        parts += [
            "### Interrupted, and retried in the same process",
            _table(others, "boundary", Boundary, _boundary, of="interruptions"),
        ]
    return "\n\n".join(parts)


def _boundary(tally: Tally) -> str:
    return tally.case.boundary


def _way(tally: Tally) -> str:
    return tally.case.way


def _table(
    tallies: Sequence[Tally],
    name: str,
    rows: Iterable[str],
    row_of: Callable[[Tally], str],
    of: str = "kills",
) -> str:
    header = [name, of, "accepted", "stored", "uncertain", "adopted", "duplicates", "lost"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    sorted_in = {str(row): [tally for tally in tallies if row_of(tally) == row] for row in rows}
    lines += [[row, *map(str, _figures(here))] for row, here in sorted_in.items() if here]
    lines.append(["**total**", *(f"**{figure}**" for figure in _figures(tallies))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(tallies: Sequence[Tally]) -> list[int]:
    return [
        len(tallies),
        _sum(tallies, lambda tally: tally.accepted),
        _sum(tallies, lambda tally: tally.standing == "stored"),
        _sum(tallies, lambda tally: tally.standing == "uncertain"),
        _sum(tallies, lambda tally: tally.adopted),
        _sum(tallies, lambda tally: tally.duplicates),
        _sum(tallies, lambda tally: tally.lost),
    ]


def _sum(tallies: Sequence[Tally], figure: Callable[[Tally], int]) -> int:
    return sum(figure(tally) for tally in tallies)


INTRODUCTION = """\
# The kill matrix

A run may die at any moment: a worker is evicted, memory runs out, a flow runs into its timeout.
Whatever happens, no generation may be paid for twice, and none that is paid for may be lost. This
page tells what came of trying it with

```sh
{command}
```

which starts what it needs: a real Prefect server, the sandbox in place of CometAPI (it counts what
it accepted, which is what would have been charged), and PostgreSQL from Debian's `postgresql`, all
on this machine. Each case has a request of its own and is played like this:

1. A process runs `image_to_video`, as an async or as a sync flow. After the purchase the victim may
   also be `collect`, for a run that did not wait. Exactly at the boundary the process sends itself
   a real SIGKILL.
2. It is recovered: by a retry of the same flow run, which Prefect holds for crashed; by a new run
   with the same key; by `collect`; by two collectors at once; or by a collector and a new run at
   once. Each is a process of its own. In about half of the cases a worker has seen the crash and
   has called the flow's hook before.
3. Nothing but whole files may be visible in the storage, right after the kill and in the end. The
   service has accepted at most one job; exactly one, if anybody can know it. Where its id was
   committed, the clip is stored now: the file's SHA-256 is that of the ledger, of the flow's
   result, of the JSON beside it, and of a fresh download, and it is a whole video.
4. Where nobody can know whether the job was accepted (from the committed claim to the committed
   id), the generation is *uncertain*: the run fails with `SubmissionUncertain`, `collect` lists it,
   both name the commands to type, and another run with its key sends nothing. Then is done what a
   user would do: the id is *adopted* if the service has the job, and one more submission is allowed
   if it has not. After that it is stored like all others.

With `--remote` there are kills of runs that keep their videos in S3, by URL and by a storage block;
in place of a rename there is an upload.

*Accepted* counts jobs when recovery is over, before a user's decision; *stored* is what recovery
needed nobody for. *Duplicates* are jobs that were paid for beyond the first of a request, and
*lost* are jobs that were paid for and are not stored in the end. Interruptions are an error that
the product has never heard of, or the flow's own timeout, at the same boundaries, with Prefect
retrying the flow in the same process. A timeout does not stop a change of the ledger that is under
way, so fewer of them end uncertain.

{total}"""
