# SPDX-License-Identifier: Apache-2.0
"""Storms as tables: for the terminal and as a Markdown page."""

import importlib.metadata
import platform
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from .checker import Wrong, count
from .fault_profile import ROUTES, SHARE, kinds_of, unseen
from .run_storm import AT_ONCE, Outcome

PACKAGES = ("prefect", "httpx", "sqlalchemy")


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the figures, one column for each storm."""
    figures = [(name.strip("*"), *cells) for name, *cells in _figures(outcomes)]
    rows = [("", *(f"seed {outcome.seed}" for outcome in outcomes)), *figures]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(["", *lines, "", "Faults by kind:", *_by_kind(outcomes), ""])


def _by_kind(outcomes: Sequence[Outcome]) -> Iterable[str]:
    struck = _struck(outcomes)
    for route in ROUTES:
        told = ", ".join(f"{kind} {struck[route, kind]}" for kind in kinds_of(route))
        yield f"  {route}: {told}"


def _figures(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    def row(name: str, figure: Callable[[Outcome], object]) -> tuple[str, ...]:
        return (name, *(str(figure(outcome)) for outcome in outcomes))

    def wrong(kind: Wrong) -> tuple[str, ...]:
        return row(_PLURAL[kind], lambda outcome: count(kind, outcome.found))

    rows = [
        row("requests", lambda outcome: outcome.requests.total()),
        *(
            row(f"- {route}", lambda outcome, route=route: outcome.requests[route])
            for route in ROUTES
        ),
        row("struck by a fault", lambda outcome: outcome.struck.total()),
        row("kinds of fault that struck", _kinds),
        row("retries by Prefect", lambda outcome: outcome.retries.total()),
        *(row(f"- {step}", lambda outcome, step=step: outcome.retries[step]) for step in _STEPS),
    ]
    rows += _rounds(outcomes)
    rows += [
        row("uncertain after the storm", lambda outcome: outcome.uncertain),
        row("- accepted: id adopted", lambda outcome: outcome.adopted),
        row("- not accepted: released", lambda outcome: outcome.released),
        row("jobs accepted", lambda outcome: outcome.accepted),
        row("in the end: stored", lambda outcome: outcome.states["stored"]),
        row("- failed upstream", lambda outcome: outcome.states["failed"]),
        row("- cancelled upstream", lambda outcome: outcome.states["cancelled"]),
    ]
    rows += [wrong(kind) for kind in Wrong]
    return [*rows, row("seconds", lambda outcome: round(outcome.seconds))]


_STEPS = ("submit", "poll", "fetch", "persist")
_PLURAL = {
    Wrong.DUPLICATE: "**duplicates**",
    Wrong.LOST: "**lost**",
    Wrong.WRONG_FILE: "**wrong files**",
    Wrong.HALF_FILE: "**half files**",
    Wrong.UNTYPED: "**errors without a type**",
    Wrong.UNSETTLED: "**unsettled in the end**",
}


def _kinds(outcome: Outcome) -> str:
    all_kinds = sum(len(kinds_of(route)) for route in ROUTES)
    return f"{all_kinds - len(unseen(outcome.struck))} of {all_kinds}"


def _rounds(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    for place, (name, _) in enumerate(outcomes[0].rounds):
        tallies = [outcome.rounds[place][1] for outcome in outcomes]
        yield (f"runs {name}", *(str(tally.total()) for tally in tallies))
        errors = sorted({error for tally in tallies for error in tally} - {"stored"})
        for ended in ["stored", *errors]:
            yield (f"- {ended}", *(str(tally[ended]) for tally in tallies))


def _struck(outcomes: Sequence[Outcome]) -> Counter[tuple[str, str]]:
    return sum((outcome.struck for outcome in outcomes), Counter())


def markdown(command: str, generations: int, outcomes: Sequence[Outcome]) -> str:
    """Return the whole page."""
    seeds = [f"seed {outcome.seed}" for outcome in outcomes]
    found = [f"- {violation}" for outcome in outcomes for violation in outcome.found]
    parts = [
        _PAGE.format(
            generations=generations,
            share=f"{100 * SHARE:.0f}",
            at_once=AT_ONCE,
            command=command,
            versions=_versions(),
        ),
        _table(["", *seeds], _figures(outcomes)),
        "## Faults by kind\n\nHow often each struck, all runs together; a dash where it cannot.",
        _table(["", *ROUTES], _kinds_and_routes(outcomes)),
    ]
    if found:
        parts.append("\n".join(["## Not as promised", "", *found]))
    return "\n\n".join(parts) + "\n"


def _kinds_and_routes(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    struck = _struck(outcomes)
    for kind in dict.fromkeys(kind for route in ROUTES for kind in kinds_of(route)):
        cells = (str(struck[route, kind]) if kind in kinds_of(route) else "–" for route in ROUTES)  # noqa: RUF001
        yield (kind, *cells)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([*found, f"SQLite {sqlite3.sqlite_version}"])


_PAGE = """# Fault storm

{generations} generations, half from images and half from videos, are bought from a stand-in for
CometAPI that misbehaves on about {share} % of all requests: submissions, polls of both routes, and
downloads. Every kind of fault that it knows takes part, and the jobs are described in all of the
documented reply shapes in turn. {at_once} flow runs at a time are under way in one process and one
event loop, with a real Prefect server. Each generation has a key of its own.

Then everything is done that a user would do. In the storm, what is unfinished is run again with
the same key while `collect` sweeps up. After it, both are done once more. What is uncertain then is
looked up in the service's own book: a job that was accepted is adopted, a submission that was not
is released, and both are run again.

A checker, which has tests of its own, compares the service's book, the ledger, the storage and the
ending of every run, first after the storm and again in the end:

- no key was accepted twice;
- each accepted job is stored, or it failed or was cancelled upstream and its run ended with that
  error, or (before the decisions) it is uncertain and listed as such;
- each stored file has the SHA-256 that the ledger records and that the service's clip has;
- nothing else is visible in the storage;
- each run ended with a result or with one of the package's own errors;
- in the end, each generation is stored, or failed or was cancelled upstream.

Repeat it with `{command}`.
The seed decides which request of a route is struck; which generation makes that request depends on
the machine, so figures differ a little from run to run.

Ran with {versions}.

## Figures"""
