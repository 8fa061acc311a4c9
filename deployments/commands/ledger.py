# SPDX-License-Identifier: Apache-2.0
"""Commands ``prefect-cometapi ledger``: list generations, and decide about uncertain ones."""

import asyncio
import json as json_text
import re
import shlex
import sys
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
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
from ...runway.models.keys import check_task_id
from ..console import console, errors, escape, show_error
from ..prefect_env import quieten_prefect
from .ledger_files import backup, rebuild
from .ledger_table import as_csv, as_json, facts_of, shown_time, table_of

T = TypeVar("T")

app = App(name="ledger", help="List what was bought, and decide about uncertain submissions.")
app.command(backup)
app.command(rebuild)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Key = Annotated[str, Parameter(help="Idempotency key of the generation.")]


def since_time(text: str, now: datetime | None = None) -> datetime:
    """Parse a time: 90m, 12h, 3d or 2w ago, or an ISO date or time (UTC); pure.

    Raises:
        ValueError: The text has neither form.
    """
    if found := re.fullmatch(r"(\d{1,5})\s*([mhdw])", text.strip()):
        ago = timedelta(**{_UNITS[found[2]]: int(found[1])})
        return (now or datetime.now(UTC)) - ago
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("write 90m, 12h, 3d, 2w, or a date as 2026-11-21") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _check_since(_type: Any, text: str | None) -> None:
    if text is not None:
        since_time(text)


def valid_task_id(_type: Any, task_id: str | None) -> None:
    """Reject a text that cannot be a task id, as a validator for cyclopts."""
    if task_id is not None:
        check_task_id(task_id)


@app.command(name="list")
def list_entries(
    *,
    state: Annotated[
        tuple[State, ...], Parameter(help="Only these states; may be repeated.", negative="")
    ] = (),
    since: Annotated[
        str | None,
        Parameter(help="Only newer ones: 90m, 12h, 3d, or 2026-11-21.", validator=_check_since),
    ] = None,
    flow_run: Annotated[str | None, Parameter(help="Only those of this flow run.")] = None,
    limit: Annotated[int, Parameter(help="Number of generations to list, the newest first.")] = 100,
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
    csv: Annotated[bool, Parameter(negative="", help="Print CSV.")] = False,
) -> None:
    """List generations, the newest first. Damaged rows are reported, and the exit status is 1."""
    damaged: list[LedgerCorrupted] = []

    async def look() -> list[Entry]:
        return await (await _ledger()).entries(
            states=state,
            since=since_time(since) if since else None,
            flow_run_id=flow_run,
            limit=limit,
            on_corrupted=damaged.append,
        )

    entries = _run(look())
    if json:
        print(json_text.dumps([as_json(entry) for entry in entries], indent=2))
    elif csv:
        print(as_csv(entries), end="")
    elif entries:
        console.print(table_of(entries))
        _advise(entries)
    elif not damaged:
        console.print("The ledger has no such generations.")
    for error in damaged:
        show_error(error)
    if damaged:
        sys.exit(1)


@app.command
def show(
    key: Key, *, json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False
) -> None:
    """Show everything that is known about one generation."""
    entry = _run(_known(key))
    if json:
        print(json_text.dumps(as_json(entry), indent=2))
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts_of(entry).items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    console.print(table)
    _advise([entry])


@app.command
def adopt(
    key: Key,
    task_id: Annotated[
        str, Parameter(help="Id that CometAPI's console shows.", validator=valid_task_id)
    ],
) -> None:
    """Record the id that was found for an uncertain submission.

    The id is checked with CometAPI first, which is free. If CometAPI cannot be reached, the id is
    recorded as not confirmed, and another one can replace it.
    """

    async def decide() -> Entry:
        from ...flows.steps.adoption import adopt_by_hand

        entry = await _known(key)
        return await adopt_by_hand(await _ledger(), entry, check_task_id(task_id), _warn)

    entry = _run(decide())
    _done(
        f"{entry.idempotency_key} is {entry.state}, with id {entry.task_id}.",
        "prefect-cometapi collect",
    )


@app.command
def write_off(key: Key) -> None:
    """Write off an uncertain submission: nothing more is sent under its idempotency key."""
    _decide(key, State.WRITTEN_OFF, "written off by hand")
    minutes = f"{ARRIVAL_WINDOW.total_seconds() / 60:g} minutes after it was sent"
    again = f"prefect-cometapi ledger resubmit {shlex.quote(key)}"
    _done(f"{key} is given up.", f"{again}   (from {minutes} on, should you want it all the same)")


@app.command
def resubmit(
    key: Key,
    *,
    now: Annotated[
        bool,
        Parameter(
            negative="",
            help="Do not wait until the first submission cannot arrive any more. If it arrives, "
            "both are charged.",
        ),
    ] = False,
) -> None:
    """Allow one more submission of an uncertain, lost, failed or cancelled generation.

    A submission without an answer may still be accepted minutes later, and then both are charged.
    The command is therefore refused for 15 minutes after the submission was sent. A failed or
    cancelled generation need not wait.
    """
    entry = _run(_known(key))
    moment = datetime.now(UTC)
    until = may_arrive_until(entry, moment)
    if until and not now:
        _refuse_for_now(entry, moment, until)
    _decide(key, State.RESUBMIT_ALLOWED, "one more submission allowed by hand", entry)
    if outcome_is_unknown(entry):
        sent = f"{key} was last sent at {shown_time(sent_at(entry, moment))}."
        console.print(escape(sent), soft_wrap=True)
    if until:
        _warn(f"until {shown_time(until)} that one may still arrive, and then both are charged")
    _done(f"{key} may be submitted once more.", "run it again with the same key")


def _refuse_for_now(entry: Entry, moment: datetime, until: datetime) -> NoReturn:
    sent = sent_at(entry, moment)
    minutes = (moment - sent).total_seconds() / 60
    again = f"prefect-cometapi ledger resubmit {shlex.quote(entry.idempotency_key)}"
    lines = {
        "": f"{entry.idempotency_key} is not released: it was sent at {shown_time(sent)}, "
        f"{minutes:.0f} minutes ago, and may still arrive until {shown_time(until)}.",
        "Money": "possibly charged, once; sent again before that time, possibly twice.",
        "Next": f"look in CometAPI's console then. If it is still not there: {again}",
        "At once": f"{again} --now   (if the first one arrives, both are charged)",
    }
    for name, text in lines.items():
        begin = f"  [dim]{name}:[/] " if name else ""
        errors.print(f"{begin}{escape(text)}", soft_wrap=True)
    sys.exit(1)


@app.command
def abandon(key: Key) -> None:
    """Make collect leave a generation alone. What was bought stays bought."""
    _decide(key, State.ABANDONED, "abandoned by hand")
    _done(f"{key} is left alone.", "a run with its key takes it up again")


def _decide(key: str, state: State, note: str, seen: Entry | None = None) -> None:
    """Record a decision about an entry as last read; exit with 1 if it is not allowed."""

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
        return None if changed else (await ledger.get(key) or entry)

    if refused := _run(decide()):
        errors.print(f"[red]{escape(key)} is {refused.state}[/], which cannot become {state}.")
        sys.exit(1)


async def _known(key: str) -> Entry:
    entry = await (await _ledger()).get(key)
    if entry is None:
        errors.print(f"[red]The ledger has no key {escape(key)}.[/]", soft_wrap=True)
        errors.print("  [dim]Next:[/] prefect-cometapi ledger list")
        sys.exit(1)
    return entry


async def _ledger() -> Any:
    from ...flows.runtime.ledger_access import open_ledger

    return await open_ledger()


def _run(work: Coroutine[Any, Any, T]) -> T:
    quieten_prefect()
    return asyncio.run(work)


def _warn(text: str) -> None:
    errors.print(f"[yellow]Note:[/] {escape(text)}", soft_wrap=True)


def _done(what: str, following: str) -> None:
    console.print(f"[green]✓[/] {escape(what)}", soft_wrap=True)
    console.print(f"  [dim]Next:[/] {escape(following)}", soft_wrap=True)


def _advise(entries: Sequence[Entry]) -> None:
    """Print the next commands for entries that need one."""
    undecided = [entry for entry in entries if entry.state is State.UNCERTAIN]
    waiting = [entry for entry in entries if entry.state in {State.SUBMITTED, State.SUCCEEDED}]
    if undecided:
        key = shlex.quote(undecided[0].idempotency_key)
        console.print(
            f"\n[yellow]{len(undecided)} uncertain[/]: possibly charged. Look in CometAPI's "
            "console for each, then one of:",
            soft_wrap=True,
        )
        for command, when in (
            (f"adopt {key} TASK_ID", "it is there"),
            (f"resubmit {key}", f"{_when(undecided[0])}: one more submission"),
            (f"write-off {key}", "it does not matter any more"),
        ):
            console.print(f"  prefect-cometapi ledger {escape(command)}  [dim]{when}[/]")
    if waiting:
        console.print("\n[dim]To finish what is bought:[/] prefect-cometapi collect")


def _when(entry: Entry) -> str:
    """Return when one more submission may be allowed."""
    until = may_arrive_until(entry, datetime.now(UTC))
    return f"it is still not there at {shown_time(until)}" if until else "it is not there"
