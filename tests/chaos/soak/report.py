# SPDX-License-Identifier: Apache-2.0
"""A soak as tables: for the terminal and as a Markdown page."""

from collections.abc import Iterator

from ..harness.checker import ViolationKind, count
from ..harness.markdown import machine, table, violations_section
from .resource_monitor import SLACK
from .run_soak import SHARE, Outcome


def summary(outcome: Outcome) -> str:
    """Return the figures."""
    return f"{_figures_table(outcome)}\n\n{_resources_table(outcome)}"


def markdown(command: str, outcome: Outcome) -> str:
    """Return the whole page."""
    page = _PAGE.format(
        command=command,
        minutes=f"{outcome.seconds / 60:.0f}",
        share=f"{100 * SHARE:.0f}",
        versions=machine("prefect", "httpx", "asyncpg", "av"),
        figures=_figures_table(outcome),
        resources=_resources_table(outcome),
    )
    problems = violations_section([*outcome.violations, *outcome.growing])
    return "\n\n".join([page.strip(), *problems]) + "\n"


def _figures_table(outcome: Outcome) -> str:
    return table(["", "figure"], _figures(outcome))


def _resources_table(outcome: Outcome) -> str:
    return table(["resource", "early", "late", "at most", ""], _resources(outcome))


def _figures(outcome: Outcome) -> Iterator[tuple[str, str]]:
    yield "minutes", f"{outcome.seconds / 60:.1f}"
    yield "generations accepted", f"{outcome.accepted:,}"
    yield "requests", f"{outcome.requests.total():,}"
    yield "- met a fault", f"{outcome.faulted:,}"
    for name, times in sorted(outcome.disturbances.items()):
        yield name, f"{times:,}"
    yield "flows of the resident processes", f"{outcome.flows.total():,}"
    for result, times in outcome.flows.most_common():
        yield f"- {result}", f"{times:,}"
    for state, times in outcome.states.most_common():
        yield f"{state} at the end", f"{times:,}"
    for kind in ViolationKind:
        yield f"{kind}", f"{count(kind, outcome.violations):,}"


def _resources(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    for (owner, resource), trend in outcome.trends.items():
        numbers = (f"{value:,.0f}" for value in (trend.early, trend.late, trend.highest))
        yield (
            f"{owner}: {resource}",
            *numbers,
            "flat" if trend.is_flat(SLACK[resource]) else "grows",
        )


_PAGE = """# Soak

`{command}`

The soak test puts a busy day into {minutes} minutes, on one machine: PostgreSQL (the ledger and
Prefect's own data), Redis, two API servers, Prefect's services, and a stand-in for CometAPI that
injects faults of every kind into about {share} % of all requests, except that no generation fails.

- A resident process continuously runs flows in one event loop: single videos of both kinds, batches
  of five, `collect`. A second one does the same and gets a SIGKILL each minute.
- Two workers run batches of four, scheduled every twenty seconds. One of them is killed with all of
  its processes every two and a half minutes; the automations restart its runs.
- PostgreSQL restarts every three minutes, every second time without a shutdown, as after a crash.

At the end, without faults, a simulated user resolves the uncertain generations, and `collect`
finishes the rest. Then the checker of the [storm](fault-storm.md) compares the service's records,
the ledger and the storage: no key was accepted twice, each accepted job is stored with its own
video, and no file is incomplete. API key and signatures are searched for in every file and
database.

Ran with {versions}

## What happened

{figures}

## Resources

*Early* is the median of the second quarter of the time, *late* of the last one. *Flat* means a
growth of at most 3 %, or by an amount that varies with the current load.

{resources}
"""
