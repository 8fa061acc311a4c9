# SPDX-License-Identifier: Apache-2.0
"""A soak as tables: for the terminal and as a Markdown page."""

from collections.abc import Iterator

from ...benchmarks.report import machine, table
from ..fault_storm.checker import Wrong, count
from .run_soak import SHARE, Outcome
from .watching import SLACK


def summary(outcome: Outcome) -> str:
    """Return the figures."""
    what = table(["", "figure"], _figures(outcome))
    return f"{what}\n\n{table(['what is held', 'early', 'late', 'at most', ''], _held(outcome))}"


def markdown(command: str, outcome: Outcome) -> str:
    """Return the whole page."""
    minutes = f"{outcome.seconds / 60:.0f}"
    versions = machine("prefect", "httpx", "sqlalchemy", "av")
    return _PAGE.format(
        command=command,
        minutes=minutes,
        share=f"{100 * SHARE:.0f}",
        versions=versions,
        figures=table(["", "figure"], _figures(outcome)),
        held=table(["what is held", "early", "late", "at most", ""], _held(outcome)),
    )


def _figures(outcome: Outcome) -> Iterator[tuple[str, str]]:
    yield "minutes", f"{outcome.seconds / 60:.1f}"
    yield "generations accepted", f"{outcome.accepted:,}"
    yield "requests", f"{outcome.requests.total():,}"
    yield "- struck by a fault", f"{outcome.struck:,}"
    for what, times in sorted(outcome.happened.items()):
        yield what, f"{times:,}"
    yield "flows of the resident processes", f"{outcome.flows.total():,}"
    for how, times in outcome.flows.most_common():
        yield f"- {how}", f"{times:,}"
    for state, times in outcome.states.most_common():
        yield f"{state} in the end", f"{times:,}"
    for wrong in Wrong:
        yield f"{wrong}", f"{count(wrong, outcome.found):,}"


def _held(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    for (who, what), found in outcome.trends.items():
        numbers = (f"{value:,.0f}" for value in (found.early, found.late, found.most))
        yield (f"{who}: {what}", *numbers, "flat" if found.is_flat(SLACK[what]) else "grows")


_PAGE = """# Soak

`{command}`

A busy day in {minutes} minutes, on one machine: PostgreSQL (the ledger and Prefect's own data),
Redis, two API servers, Prefect's services, and a stand-in for CometAPI that misbehaves on about
{share} % of all requests in every way that it knows, save that no generation fails.

- A resident process runs flows in one event loop all the time: single videos of both kinds,
  batches of five, `collect`. A second one does the same and gets a SIGKILL each minute.
- Two workers run batches of four that come every twenty seconds. One of them is killed, with all
  that it started, every two and a half minutes; the automations start its runs again.
- PostgreSQL restarts every three minutes, each second time without a shutdown, as after a crash.

In the end, in fair weather, the user decides what is uncertain, and `collect` finishes the rest.
Then the same checker as for the [storm](fault-storm.md) compares the service's book, the ledger and
the storage: no key accepted twice, each accepted job stored with its own clip, nothing half; and
key and signatures are searched for in every file and database.

Ran with {versions}

## What happened

{figures}

## What is held

Early is the median of the second quarter of the time, late that of the last one. Flat is what has
not grown by more than three in a hundred, or by what comes and goes with the load of the moment.

{held}
"""
