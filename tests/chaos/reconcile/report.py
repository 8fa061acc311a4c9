# SPDX-License-Identifier: Apache-2.0
"""Report of the batches whose uncertain submissions the account decided."""

from collections.abc import Sequence

from ..harness.markdown import machine, table, violations_section
from .run_reconcile import Outcome

_PAGE = """# Reconciliation

A batch of {rows} generations runs with `COMETAPI_ON_UNCERTAIN=reconcile` against a stand-in for
CometAPI that loses a fifth of the replies: three quarters of them after an acceptance, the rest
before one. The process that runs the batch is killed while it buys, and started again. A second
batch runs with the default setting, while another client buys two generations per second on the
same account; then `ledger reconcile` looks at it without `--apply`.

- No picture may be bought twice, each accepted job must be in the ledger under its own key, and at
  least 95 % of the uncertain generations must be decided without a person.
- Beside another client, the look may change nothing. An accepted generation may be given no other
  task, and an ambiguous one must be left to a person.

The stand-in accepts a request at once or never. So the test cuts the 15 minutes after which a key
may be freed to 5 s, the writing delay to 1 s, and the clock difference to 0.2 s.

Repeat it with `{command}`.

{machine}

## Figures

{table}

A generation that was not accepted, and which exactly one task of the other client fits, looks like
an accepted one. That cannot be told apart, so carrying out a verdict presumes that nothing else
uses the account.
"""


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one line for each batch."""
    return "\n".join(map(_line, outcomes))


def _line(outcome: Outcome) -> str:
    how = "beside another client" if outcome.other_client else f"killed {len(outcome.kills)} times"
    text = (
        f"seed {outcome.seed}, {outcome.rows} rows, {how}, {outcome.seconds:.0f} s: "
        f"{outcome.accepted} accepted, {outcome.stored} stored, {outcome.uncertain} uncertain, "
        f"{outcome.decided} decided ({outcome.share_decided:.0%}), {outcome.left} left to a person"
    )
    if outcome.other_client:
        verdicts = ", ".join(f"{count} {name}" for name, count in outcome.verdicts.items())
        text += f"; {outcome.foreign_jobs} jobs of the other client; verdicts: {verdicts}"
    return f"{text}; {len(outcome.problems)} problems"


def markdown(command: str, outcomes: Sequence[Outcome]) -> str:
    """Return the report as a page of the docs."""
    head = ["", *(_name(outcome) for outcome in outcomes)]
    rows = {
        "generations": [outcome.rows for outcome in outcomes],
        "kills": [len(outcome.kills) for outcome in outcomes],
        "jobs accepted": [outcome.accepted for outcome in outcomes],
        "jobs of the other client": [outcome.foreign_jobs for outcome in outcomes],
        "videos stored": [outcome.stored for outcome in outcomes],
        "uncertain": [outcome.uncertain for outcome in outcomes],
        "decided by the account": [outcome.decided for outcome in outcomes],
        "share decided": [f"{outcome.share_decided:.0%}" for outcome in outcomes],
        "left to a person": [outcome.left for outcome in outcomes],
        "- probably this": [outcome.verdicts["probably this"] for outcome in outcomes],
        "- of these, not accepted in fact": [outcome.looks_like_ours for outcome in outcomes],
        "- not accepted": [outcome.verdicts["not accepted"] for outcome in outcomes],
        "- undecided": [outcome.verdicts["undecided"] for outcome in outcomes],
        "bought twice": [_count(outcome, "times") for outcome in outcomes],
        "lost or wrongly adopted": [
            len(outcome.problems) - _count(outcome, "times") for outcome in outcomes
        ],
        "seconds": [f"{outcome.seconds:.0f}" for outcome in outcomes],
    }
    figures = table(head, [[name, *map(str, values)] for name, values in rows.items()])
    page = _PAGE.format(
        rows=outcomes[0].rows,
        command=command,
        machine=f"Ran on {machine('prefect', 'httpx', 'asyncpg')}",
        table=figures,
    )
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    return "\n\n".join([page.rstrip(), *violations_section(problems)]) + "\n"


def _name(outcome: Outcome) -> str:
    return f"seed {outcome.seed}, {'another client' if outcome.other_client else 'alone'}"


def _count(outcome: Outcome, word: str) -> int:
    return sum(problem.endswith(word) for problem in outcome.problems)
