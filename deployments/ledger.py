# SPDX-License-Identifier: Apache-2.0
"""``prefect-cometapi ledger``: what was bought, and what to do about the uncertain ones."""

import asyncio
import csv
import io
import json as json_text
import re
import shlex
import sys
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter
from rich.table import Table

from ..runway.entries import Entry, State
from ..runway.errors import LedgerDamaged
from ..runway.generation import StoredVideo
from ..runway.holders import shown_holder
from ..runway.names import check_task_id
from ..runway.redact import printable
from .ledger_files import backup, rebuild
from .quiet import quieten_prefect
from .terminal import console, errors, escape, show_error

T = TypeVar("T")

app = App(name="ledger", help="List what was bought, and decide about uncertain submissions.")
app.command(backup)
app.command(rebuild)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

_COLOURS = {
    State.STORED: "green",
    State.FAILED: "red",
    State.CANCELLED: "red",
    State.UNCERTAIN: "bold yellow",
    State.LOST: "yellow",
    State.SUBMITTED: "cyan",
    State.SUCCEEDED: "cyan",
}

_CSV_COLUMNS = (
    "key",
    "state",
    "task_id",
    "route",
    "model",
    "created_at",
    "submitted_at",
    "finished_at",
    "stored_at",
    "waited",
    "polls",
    "billed_seconds",
    "attempts",
    "flow_run_id",
    "failure_code",
    "note",
    "uris",
    "sha256",
)

Key = Annotated[str, Parameter(help="Idempotency key of the generation.")]


def since_time(text: str, now: datetime | None = None) -> datetime:
    """A time as people write it: 90m, 12h, 3d, 2w ago, or an ISO date or time (UTC); pure.

    Raises:
        ValueError: It is neither.
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
    """Refuse what cannot be an id, for cyclopts."""
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
    limit: Annotated[int, Parameter(help="At most so many, the newest first.")] = 100,
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
    csv: Annotated[bool, Parameter(negative="", help="Print CSV.")] = False,
) -> None:
    """List generations, the newest first. Damaged rows are told apart, and the status is 1."""
    damaged: list[LedgerDamaged] = []

    async def look() -> list[Entry]:
        return await (await _ledger()).entries(
            states=state,
            since=since_time(since) if since else None,
            flow_run_id=flow_run,
            limit=limit,
            tell=damaged.append,
        )

    entries = _run(look())
    if json:
        print(json_text.dumps([_as_json(entry) for entry in entries], indent=2))
    elif csv:
        print(as_csv(entries), end="")
    elif entries:
        console.print(_table(entries))
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
    """Show all that is known of one generation."""
    entry = _run(_known(key))
    if json:
        print(json_text.dumps(_as_json(entry), indent=2))
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(entry).items():
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
    """Give an uncertain submission the id that was found for it."""

    async def decide() -> Entry:
        from ..runway.buying import attach

        return await attach(await _ledger(), await _known(key), check_task_id(task_id))

    entry = _run(decide())
    _done(f"{entry.key} is {entry.state}, with id {entry.task_id}.", "prefect-cometapi collect")


@app.command
def lost(key: Key) -> None:
    """Give an uncertain submission up: nothing is sent under its key any more."""
    _decide(key, State.LOST, "declared lost by hand")
    _done(f"{key} is given up.", f"prefect-cometapi ledger resubmit {shlex.quote(key)}")


@app.command
def resubmit(key: Key) -> None:
    """Allow one more submission of an uncertain, lost, failed or cancelled generation.

    If the first one was accepted after all, both are charged.
    """
    _decide(key, State.RELEASED, "one more submission allowed by hand")
    _done(f"{key} may be submitted once more.", "run it again with the same key")


@app.command
def abandon(key: Key) -> None:
    """Have collect leave a generation alone. What was bought stays bought."""
    _decide(key, State.ABANDONED, "abandoned by hand")
    _done(f"{key} is left alone.", "a run with its key takes it up again")


def as_csv(entries: Sequence[Entry]) -> str:
    """The entries as CSV, one row each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for entry in entries:
        row = _as_json(entry)
        writer.writerow([_cell(row[name]) for name in _CSV_COLUMNS])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A cell that a spreadsheet takes for text, whatever a service or a key begins with."""
    if not isinstance(value, str):
        return "" if value is None else value
    mark = "'" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else ""
    return f"{mark}{printable(value)}"


def _decide(key: str, state: State, note: str) -> None:
    async def decide() -> Entry | None:
        entry = await _known(key)
        changed = await (await _ledger()).change(entry.key, state, seen=entry, note=note)
        return None if changed else entry

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
    from ..flows.ledger import open_ledger

    return await open_ledger()


def _run(work: Coroutine[Any, Any, T]) -> T:
    quieten_prefect()
    return asyncio.run(work)


def _done(what: str, following: str) -> None:
    console.print(f"[green]✓[/] {escape(what)}", soft_wrap=True)
    console.print(f"  [dim]Next:[/] {escape(following)}", soft_wrap=True)


def _videos(entry: Entry) -> list[StoredVideo]:
    return [video for stored in entry.videos.values() for video in stored]


def _as_json(entry: Entry) -> dict[str, Any]:
    videos = _videos(entry)
    return {
        **entry.model_dump(mode="json", exclude={"claim", "leased_until", "lease_left"}),
        "waited": round(entry.waited, 3),
        "uris": " ".join(video.uri for video in videos),
        "sha256": " ".join(dict.fromkeys(video.sha256 for video in videos)),
    }


def _facts(entry: Entry) -> dict[str, str]:
    request = json_text.dumps(entry.request, ensure_ascii=False) if entry.request else ""
    facts = {
        "key": entry.key,
        "state": str(entry.state),
        "note": entry.note,
        "failure": entry.failure_code,
        "id": entry.task_id or "",
        "service": entry.base_url,
        "model": " ".join(filter(None, [entry.route, entry.model])),
        "request": request,
        "billed": f"{entry.billed_seconds:g} s of video" if entry.billed_seconds else "",
        "intended": _time(entry.created_at),
        "submitted": _time(entry.submitted_at),
        "finished": _time(entry.finished_at),
        "stored": _time(entry.stored_at),
        "polls": str(entry.polls or ""),
        "submissions": str(entry.attempts),
        "flow run": entry.flow_run_id or "",
        "held by": shown_holder(entry.holder) if entry.holder else "",
        "videos": "\n".join(video.uri for video in _videos(entry)),
    }
    return {name: value for name, value in facts.items() if value}


def _time(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else ""


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("key", overflow="fold")
    table.add_column("state")
    table.add_column("id")
    table.add_column("model")
    table.add_column("since (UTC)")
    table.add_column("took", justify="right")
    table.add_column("seconds", justify="right")
    for entry in entries:
        colour = _COLOURS.get(entry.state, "default")
        table.add_row(
            escape(entry.key),
            f"[{colour}]{entry.state}[/]",
            escape((entry.task_id or "")[:8]),
            escape(entry.model or ""),
            f"{entry.created_at:%m-%d %H:%M}",
            f"{entry.waited:.0f} s" if entry.waited else "",
            f"{entry.billed_seconds:g}" if entry.billed_seconds else "",
        )
    return table


def _advise(entries: Sequence[Entry]) -> None:
    """What to type next, if something waits for it."""
    undecided = [entry for entry in entries if entry.state is State.UNCERTAIN]
    waiting = [entry for entry in entries if entry.state in {State.SUBMITTED, State.SUCCEEDED}]
    if undecided:
        key = shlex.quote(undecided[0].key)
        console.print(
            f"\n[yellow]{len(undecided)} uncertain[/]: perhaps charged. Look in CometAPI's console "
            "for each, then one of:",
            soft_wrap=True,
        )
        for command, when in (
            (f"adopt {key} TASK_ID", "it is there"),
            (f"resubmit {key}", "it is not there: one more submission"),
            (f"lost {key}", "it does not matter any more"),
        ):
            console.print(f"  prefect-cometapi ledger {escape(command)}  [dim]{when}[/]")
    if waiting:
        console.print("\n[dim]To finish what is bought:[/] prefect-cometapi collect")
