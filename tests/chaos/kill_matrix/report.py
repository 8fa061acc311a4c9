# SPDX-License-Identifier: Apache-2.0
"""The matrix as a Markdown page, which the results alone determine."""

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..harness.markdown import table, versions, violations_section
from .plan import Boundary, CrashKind, Database, Recovery
from .run_case import CaseResult

PACKAGES = ("prefect", "asyncpg", "httpx")


@dataclass(frozen=True)
class Run:
    """One run of the matrix.

    Attributes:
        command: Command that repeats it.
        seed: Seed of its plan.
        seconds: Duration of the run.
        postgresql: Version of PostgreSQL, or an empty text.
        results: Result of each case.
        problems: Violations of the promises.
    """

    command: str
    seed: int
    seconds: float
    postgresql: str
    results: Sequence[CaseResult]
    problems: Sequence[str]


def summary(run: Run) -> str:
    """Return the totals in one sentence."""
    results = run.results
    kills = sum(result.case.crash is CrashKind.KILL for result in results)
    return (
        f"{kills} kills and {len(results) - kills} interruptions in {run.seconds:.0f} s: "
        f"{_sum(results, lambda result: result.state == 'stored')} stored by recovery alone, "
        f"{_sum(results, lambda result: result.state == 'uncertain')} uncertain and settled, "
        f"{_sum(results, lambda result: result.duplicates)} duplicates, "
        f"{_sum(results, lambda result: result.lost)} lost, "
        + (f"{len(run.problems)} violations" if run.problems else "no violations")
    )


def markdown(run: Run) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION.format(command=run.command, total=_total(run))]
    for database in ("SQLite", "PostgreSQL"):
        results = [result for result in run.results if result.case.database == database]
        if results:
            parts.append(_section(database, results))
    return "\n\n".join([*parts, *violations_section(run.problems)]) + "\n"


def _total(run: Run) -> str:
    rows = [
        ("Result", summary(run)),
        ("Victims", _victims(run)),
        ("Seed", str(run.seed)),
        ("Versions", _versions(run.postgresql)),
    ]
    return "\n".join(f"- **{name}**: {value}." for name, value in rows)


def _versions(postgresql: str) -> str:
    databases = [f"PostgreSQL {postgresql}"] if postgresql else []
    system = f"{platform.system()} {platform.machine()}"
    return ", ".join([versions(*PACKAGES), *databases, system])


def _victims(run: Run) -> str:
    """Return the kinds of processes that crashed."""
    results = run.results
    collectors = _sum(results, lambda result: result.case.collector)
    sync = _sum(results, lambda result: result.case.sync)
    return (
        f"{len(results) - collectors} runs and {collectors} collectors, {sync} of them sync flows"
    )


def _section(database: Database, results: Sequence[CaseResult]) -> str:
    kills = [result for result in results if result.case.crash is CrashKind.KILL]
    parts = [f"## {database}", "### Killed at", _table(kills, "boundary", Boundary, _boundary)]
    parts += ["### Recovered by", _table(kills, "recovery", Recovery, _recovery)]
    others = [result for result in results if result.case.crash is not CrashKind.KILL]
    if others:
        parts += [
            "### Interrupted, and retried in the same process",
            _table(others, "boundary", Boundary, _boundary, of="interruptions"),
        ]
    return "\n\n".join(parts)


def _boundary(result: CaseResult) -> str:
    return result.case.boundary


def _recovery(result: CaseResult) -> str:
    return result.case.recovery


def _table(
    results: Sequence[CaseResult],
    name: str,
    rows: Iterable[str],
    row_of: Callable[[CaseResult], str],
    of: str = "kills",
) -> str:
    head = [name, of, "accepted", "stored", "uncertain", "adopted", "duplicates", "lost"]
    by_row = {str(row): [result for result in results if row_of(result) == row] for row in rows}
    lines = [[row, *map(str, _figures(found))] for row, found in by_row.items() if found]
    lines.append(["**total**", *(f"**{figure}**" for figure in _figures(results))])
    return table(head, lines)


def _figures(results: Sequence[CaseResult]) -> list[int]:
    return [
        len(results),
        _sum(results, lambda result: result.accepted),
        _sum(results, lambda result: result.state == "stored"),
        _sum(results, lambda result: result.state == "uncertain"),
        _sum(results, lambda result: result.adopted),
        _sum(results, lambda result: result.duplicates),
        _sum(results, lambda result: result.lost),
    ]


def _sum(results: Sequence[CaseResult], figure: Callable[[CaseResult], int]) -> int:
    return sum(figure(result) for result in results)


INTRODUCTION = """\
# The kill matrix

A run can die at any moment: a worker is evicted, memory runs out, a flow exceeds its timeout. No
generation may be paid for twice, and no paid one may be lost. This page has the results of

```sh
{command}
```

which starts a real Prefect server, the sandbox in place of CometAPI (it counts the accepted jobs,
which would have been charged), and PostgreSQL from Debian's `postgresql`, all on one machine. Each
case has its own request and runs as follows:

1. A process runs `image_to_video`, as an async or a sync flow. After the purchase, it may also be
   `collect`, for a run that did not wait. Exactly at the boundary, the process sends itself a
   SIGKILL.
2. It is recovered: by a retry of the same flow run, which Prefect has marked as crashed; by a new
   run with the same key; by `collect`; by two concurrent collectors; or by a collector and a
   concurrent new run. Each is a separate process. In about half of the cases, a worker has noticed
   the crash and called the flow's hook before.
3. Only complete files may be visible in the storage, after the kill and at the end. The service has
   accepted at most one job, and exactly one if that can be known. If its id was committed, the
   video is stored now: the file is a complete video, and its SHA-256 is that of the ledger, of the
   flow's result, of the sidecar, and of a new download.
4. If it cannot be known whether the job was accepted (from the committed claim to the committed
   id), the generation is *uncertain*: the run fails with `SubmissionUncertain`, `collect` lists it,
   both print the next commands, and another run with its key sends nothing. Then the test acts as a
   user would: it *adopts* the id if the service has the job, and otherwise allows one more
   submission. After that, the video is stored like all others.

With `--remote`, it kills runs that store their videos in S3, by URL and by a storage block; an
upload takes the place of the rename.

*Accepted* counts jobs after the recovery and before a user's decision; *stored* counts those that
were recovered without a decision. *Duplicates* are paid jobs beyond the first of a request, and
*lost* are paid jobs that are not stored at the end. Interruptions are an unknown error or the
flow's own timeout, at the same boundaries, after which Prefect retries the flow in the same
process. A timeout does not stop a change of the ledger that has begun, so fewer of them end
uncertain.

{total}"""
