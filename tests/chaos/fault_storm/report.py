# SPDX-License-Identifier: Apache-2.0
"""Storms as tables: for the terminal and as a Markdown page."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ..harness.checker import ViolationKind, count
from ..harness.fault_profile import ROUTES, SHARE, kinds_of, unused_faults
from ..harness.markdown import table, versions, violations_section
from .run_storm import AT_ONCE, Outcome

PACKAGES = ("prefect", "httpx", "asyncpg")


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the figures, one column for each storm."""
    rows = [(name.strip("*"), *cells) for name, *cells in _figures(outcomes)]
    figures = table(_head(outcomes), rows)
    return "\n".join(["", figures, "", "Faults by kind:", *_by_kind(outcomes), ""])


def _head(outcomes: Sequence[Outcome]) -> list[str]:
    return ["", *(f"seed {outcome.seed}" for outcome in outcomes)]


def _by_kind(outcomes: Sequence[Outcome]) -> Iterable[str]:
    faulted = _faulted(outcomes)
    for route in ROUTES:
        counts = ", ".join(f"{kind} {faulted[route, kind]}" for kind in kinds_of(route))
        yield f"  {route}: {counts}"


def _figures(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    def row(name: str, figure: Callable[[Outcome], object]) -> tuple[str, ...]:
        return (name, *(str(figure(outcome)) for outcome in outcomes))

    def violated(kind: ViolationKind) -> tuple[str, ...]:
        return row(_PLURAL[kind], lambda outcome: count(kind, outcome.violations))

    rows = [
        row("requests", lambda outcome: outcome.requests.total()),
        *(
            row(f"- {route}", lambda outcome, route=route: outcome.requests[route])
            for route in ROUTES
        ),
        row("met a fault", lambda outcome: outcome.faulted.total()),
        row("kinds of fault that occurred", _kinds),
        row("retries by Prefect", lambda outcome: outcome.retries.total()),
        *(row(f"- {step}", lambda outcome, step=step: outcome.retries[step]) for step in _STEPS),
    ]
    rows += _rounds(outcomes)
    rows += [
        row("uncertain after the storm", lambda outcome: outcome.uncertain),
        row("- accepted: id adopted", lambda outcome: outcome.adopted),
        row("- not accepted: submitted again", lambda outcome: outcome.resubmitted),
        row("jobs accepted", lambda outcome: outcome.accepted),
        row("at the end: stored", lambda outcome: outcome.states["stored"]),
        row("- failed upstream", lambda outcome: outcome.states["failed"]),
        row("- cancelled upstream", lambda outcome: outcome.states["cancelled"]),
    ]
    rows += [violated(kind) for kind in ViolationKind]
    return [*rows, row("seconds", lambda outcome: round(outcome.seconds))]


_STEPS = ("submit", "poll", "fetch", "persist")
_PLURAL = {
    ViolationKind.DUPLICATE: "**duplicates**",
    ViolationKind.LOST: "**lost**",
    ViolationKind.WRONG_FILE: "**wrong files**",
    ViolationKind.PARTIAL_FILE: "**partial files**",
    ViolationKind.UNTYPED: "**errors without a type**",
    ViolationKind.UNSETTLED: "**unsettled at the end**",
}


def _kinds(outcome: Outcome) -> str:
    all_kinds = sum(len(kinds_of(route)) for route in ROUTES)
    return f"{all_kinds - len(unused_faults(outcome.faulted))} of {all_kinds}"


def _rounds(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    for number, (name, _) in enumerate(outcomes[0].rounds):
        tallies = [outcome.rounds[number][1] for outcome in outcomes]
        yield (f"runs {name}", *(str(tally.total()) for tally in tallies))
        errors = sorted({error for tally in tallies for error in tally} - {"stored"})
        for ended in ["stored", *errors]:
            yield (f"- {ended}", *(str(tally[ended]) for tally in tallies))


def _faulted(outcomes: Sequence[Outcome]) -> Counter[tuple[str, str]]:
    return sum((outcome.faulted for outcome in outcomes), Counter())


def markdown(command: str, generations: int, outcomes: Sequence[Outcome]) -> str:
    """Return the whole page."""
    parts = [
        _PAGE.format(
            generations=generations,
            share=f"{100 * SHARE:.0f}",
            at_once=AT_ONCE,
            command=command,
            versions=versions(*PACKAGES),
        ),
        table(_head(outcomes), _figures(outcomes)),
        "## Faults by kind\n\nNumber of faults in all runs; a dash where a fault cannot occur.",
        table(["", *ROUTES], _kinds_and_routes(outcomes)),
        *violations_section(violation for outcome in outcomes for violation in outcome.violations),
    ]
    return "\n\n".join(parts) + "\n"


def _kinds_and_routes(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    faulted = _faulted(outcomes)
    for kind in dict.fromkeys(kind for route in ROUTES for kind in kinds_of(route)):
        cells = (str(faulted[route, kind]) if kind in kinds_of(route) else "–" for route in ROUTES)  # noqa: RUF001
        yield (kind, *cells)


_PAGE = """# Fault storm

The test buys {generations} generations, half from images and half from videos, from a stand-in for
CometAPI that injects faults into about {share} % of all requests: submissions, polls of both
routes, and downloads. It uses every kind of fault, and all of the documented reply shapes in turn.
{at_once} concurrent flow runs share one process and one event loop, with a real Prefect server.
Each generation has its own key.

Then the test acts as a user would. During the storm, it runs unfinished generations again with the
same key, beside `collect`. After the storm, it does both once more. Then it looks for the uncertain
ones in the service's records: it adopts an accepted job, allows another submission for the others,
and runs both again.

A checker, which has its own tests, compares the service's records, the ledger, the storage and the
result of every run, after the storm and at the end:

- no key was accepted twice;
- each accepted job is stored, or it failed or was cancelled upstream and its run ended with that
  error, or (before the decisions) it is listed as uncertain;
- each stored file has the SHA-256 of the ledger and of the service's video;
- nothing else is visible in the storage;
- each run ended with a result or with one of the package's own errors;
- at the end, each generation is stored, or failed or was cancelled upstream.

Repeat it with `{command}`. The seed
determines which requests of a route get a fault. Which generation makes such a request depends on
the machine, so the figures vary a little between runs.

Ran with {versions}.

## Figures"""
