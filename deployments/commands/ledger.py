# SPDX-License-Identifier: Apache-2.0
"""Commands ``prefect-cometapi ledger``: list generations, and resolve uncertain submissions."""

import asyncio
import json as json_text
import shlex
import sys
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

from cyclopts import App, Parameter
from rich.table import Table

from ...runway.errors import LedgerCorrupted
from ...runway.ledger.entry import Entry, State
from ...runway.ledger.resubmission import (
    ARRIVAL_WINDOW,
    may_arrive_until,
    outcome_is_unknown,
    sent_at,
)
from ...runway.models.keys import check_task_id, one_form
from ..console import console, errors, escape, exit_unknown_keys, show_error, wide_console
from ..output import OUTPUT
from ..prefect_env import quieten_prefect
from .ledger_costs import export, report
from .ledger_files import backup, rebuild
from .ledger_period import check_time, since_time
from .ledger_reconcile import reconcile
from .ledger_table import as_csv, as_json, facts_of, shown_time, table_of

T = TypeVar("T")

app = App(name="ledger", help="List bought generations, and resolve uncertain submissions.")
app.command(backup)
app.command(rebuild)
app.command(reconcile)
app.command(export)
app.command(report)

Key = Annotated[str, Parameter(help="Idempotency key of the generation.")]


def valid_task_id(_type: Any, task_id: str | None) -> None:
    """Validate a task id, for cyclopts."""
    if task_id is not None:
        check_task_id(task_id)


@app.command(name="list")
def list_entries(
    *,
    state: Annotated[
        tuple[State, ...],
        Parameter(
            help="Only generations in this state. Repeatable.",
            negative="",
        ),
    ] = (),
    since: Annotated[
        str | None,
        Parameter(
            help="Only generations newer than 90m, 12h, 3d or 2026-11-21.", validator=check_time
        ),
    ] = None,
    flow_run: Annotated[
        str | None, Parameter(help="Only generations of the flow run with this id.")
    ] = None,
    limit: Annotated[int, Parameter(help="Maximum number of generations to list.")] = 100,
    wide: Annotated[
        bool,
        Parameter(
            negative="",
            help="Print every column, with complete ids, prompts and notes, one line each.",
        ),
    ] = False,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
    csv: Annotated[bool, Parameter(negative="", help="Print the result as CSV.")] = False,
) -> None:
    """List generations, newest first. Reports corrupted rows, and then exits with status 1."""
    corrupted: list[LedgerCorrupted] = []

    async def look() -> list[Entry]:
        return await (await _ledger()).entries(
            states=state,
            since=since_time(since) if since else None,
            flow_run_id=flow_run,
            limit=limit,
            on_corrupted=corrupted.append,
        )

    entries = _run(look())
    if json:
        OUTPUT.write(json_text.dumps([as_json(entry) for entry in entries], indent=2) + "\n")
    elif csv:
        OUTPUT.write(as_csv(entries))
    elif entries:
        if wide:
            wide_console().print(table_of(entries, None))
        else:
            console.print(table_of(entries, console.width))
        _advise(entries)
    elif not corrupted:
        console.print("No generations found.")
    for error in corrupted:
        show_error(error)
    if corrupted:
        sys.exit(1)


@app.command
def show(
    idempotency_key: Key,
    *,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """Show all recorded facts about one generation."""
    entry = _run(_known(idempotency_key))
    if json:
        OUTPUT.write(json_text.dumps(as_json(entry), indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts_of(entry).items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    console.print(table)
    _advise([entry])


@app.command
def adopt(
    idempotency_key: Key,
    task_id: Annotated[
        str,
        Parameter(
            help="Task id of the generation, as CometAPI's console shows it.",
            validator=valid_task_id,
        ),
    ],
) -> None:
    """Record the task id that you found for an uncertain submission. Buys nothing.

    CometAPI is asked first whether it knows the id. If it cannot be reached, the id is recorded
    as not confirmed, and can be replaced by another one.
    """

    async def decide() -> Entry:
        from ...flows.steps.adoption import adopt_by_hand

        entry = await _known(idempotency_key)
        return await adopt_by_hand(await _ledger(), entry, check_task_id(task_id), _warn)

    entry = _run(decide())
    _done(
        f"{entry.idempotency_key} is now {entry.state}, with task id {entry.task_id}.",
        "prefect-cometapi collect",
    )


@app.command
def write_off(idempotency_key: Key) -> None:
    """Write off an uncertain submission. Nothing more is sent under its idempotency key."""
    _decide(idempotency_key, State.WRITTEN_OFF, "written off by hand")
    minutes = f"{ARRIVAL_WINDOW.total_seconds() / 60:g} minutes after the submission"
    command = f"prefect-cometapi ledger resubmit {shlex.quote(idempotency_key)}"
    _done(
        f"{idempotency_key} is written off. It may have been charged once.",
        f"no further step is needed. To submit it again, {minutes}: {command}",
    )


@app.command
def resubmit(
    idempotency_key: Key,
    *,
    now: Annotated[
        bool,
        Parameter(
            negative="",
            help="Do not wait until the first submission can no longer be accepted. If it is "
            "accepted too, both are charged.",
        ),
    ] = False,
) -> None:
    """Allow one more submission of an uncertain, written-off, failed or cancelled generation.

    A submission without an answer may still be accepted minutes later, and then both are charged.
    Therefore the command fails until 15 minutes after the submission. A failed or cancelled
    generation can be resubmitted at once.
    """
    entry = _run(_known(idempotency_key))
    moment = datetime.now(UTC)
    until = may_arrive_until(entry, moment)
    if until and not now:
        _refuse_for_now(entry, moment, until)
    _decide(idempotency_key, State.RESUBMIT_ALLOWED, "one more submission allowed by hand", entry)
    if outcome_is_unknown(entry):
        sent = f"{idempotency_key} was last submitted at {shown_time(sent_at(entry, moment))}."
        console.print(escape(sent), soft_wrap=True)
    if until:
        _warn(f"if that submission is still accepted before {shown_time(until)}, both are charged")
    _done(
        f"{idempotency_key} may be submitted once more.",
        "run it again with the same idempotency key",
    )


def _refuse_for_now(entry: Entry, moment: datetime, until: datetime) -> NoReturn:
    sent = sent_at(entry, moment)
    minutes = (moment - sent).total_seconds() / 60
    again = f"prefect-cometapi ledger resubmit {shlex.quote(entry.idempotency_key)}"
    lines = {
        "": f"{entry.idempotency_key} cannot be resubmitted yet: it was sent at "
        f"{shown_time(sent)}, {minutes:.0f} minutes ago, and may still be accepted until "
        f"{shown_time(until)}.",
        "Money": "possibly charged once; with a resubmission before that time, possibly twice.",
        "Next": f"look in CometAPI's console after that time. If it is still not there: {again}",
        "To risk it now": f"{again} --now   (both are charged if the first one is accepted)",
    }
    for name, text in lines.items():
        label = f"  [dim]{name}:[/] " if name else ""
        errors.print(f"{label}{escape(text)}", soft_wrap=True)
    sys.exit(1)


@app.command
def abandon(idempotency_key: Key) -> None:
    """Make collect ignore a generation. Does not refund or cancel it."""
    _decide(idempotency_key, State.ABANDONED, "abandoned by hand")
    _done(
        f"{idempotency_key} is abandoned; collect ignores it.",
        "no further step is needed. A run with the same idempotency key continues it.",
    )


def _decide(key: str, state: State, note: str, seen: Entry | None = None) -> None:
    """Record a decision about an entry as last read, or exit with status 1 if it is not allowed."""

    async def decide() -> Entry | None:
        ledger = await _ledger()
        entry = seen or await _known(key)
        decided = entry
        if state is not State.ABANDONED and entry.task_id and not entry.task_id_checked:
            decided = await ledger.withdraw_id(entry) or entry  # CometAPI has not confirmed the id
        decisions = {
            State.ABANDONED: ledger.mark_abandoned,
            State.RESUBMIT_ALLOWED: ledger.mark_resubmit_allowed,
            State.WRITTEN_OFF: ledger.mark_written_off,
        }
        changed = await decisions[state](decided, note)
        return None if changed else (await ledger.get(entry.idempotency_key) or entry)

    if refused := _run(decide()):
        errors.print(
            f"[red]{escape(key)} is {refused.state}[/] and cannot become {state}.", soft_wrap=True
        )
        sys.exit(1)


async def _known(key: str) -> Entry:
    ledger = await _ledger()
    entry = await ledger.get(key) or await ledger.get(one_form(key))
    if entry is None:
        exit_unknown_keys([key])
    return entry


async def _ledger() -> Any:
    from ...flows.runtime.ledger_access import open_ledger

    return await open_ledger()


def _run(work: Coroutine[Any, Any, T]) -> T:
    quieten_prefect()
    return asyncio.run(work)


def _warn(text: str) -> None:
    errors.print(f"[yellow]Note:[/] {escape(text)}", soft_wrap=True)


def _done(result: str, next_step: str) -> None:
    console.print(f"[green]✓[/] {escape(result)}", soft_wrap=True)
    console.print(f"  [dim]Next:[/] {escape(next_step)}", soft_wrap=True)


def _advise(entries: Sequence[Entry]) -> None:
    """Print the next commands for entries that need one."""
    undecided = [entry for entry in entries if entry.state is State.UNCERTAIN]
    waiting = [entry for entry in entries if entry.state in {State.SUBMITTED, State.SUCCEEDED}]
    if undecided:
        key = shlex.quote(undecided[0].idempotency_key)
        console.print(
            f"\n[yellow]Uncertain submissions: {len(undecided)}[/], each possibly charged. "
            "prefect-cometapi ledger reconcile asks the account; or look in CometAPI's console. "
            "Next, for each:",
            soft_wrap=True,
        )
        for command, when in (
            (f"adopt {key} TASK_ID", "if it is there"),
            (f"resubmit {key}", _when(undecided[0])),
            (f"write-off {key}", "if you no longer need it"),
        ):
            console.print(
                f"  prefect-cometapi ledger {escape(command)}  [dim]{when}[/]", soft_wrap=True
            )
    if waiting:
        console.print("\n[dim]Next, to finish what was bought:[/] prefect-cometapi collect")


def _when(entry: Entry) -> str:
    """Return the condition under which an entry can be resubmitted."""
    until = may_arrive_until(entry, datetime.now(UTC))
    return f"if it is still not there at {shown_time(until)}" if until else "if it is not there"
