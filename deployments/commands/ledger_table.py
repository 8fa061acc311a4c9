# SPDX-License-Identifier: Apache-2.0
"""Output formats of ledger entries: table, CSV, JSON, and the details of one entry."""

import csv
import io
import json as json_text
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from textwrap import shorten
from typing import Any

from rich.table import Table

from ...runway.ledger.budget import ASSUMED_SECONDS
from ...runway.ledger.entry import Entry, State
from ...runway.ledger.figures import in_words
from ...runway.ledger.owners import describe_owner
from ...runway.ledger.service_names import SANDBOX, service_name
from ...runway.models.generation import StoredVideo
from ...runway.models.prices import shown_cost
from ...runway.redact import printable
from ..console import display_path, escape

_COLOURS = {
    State.STORED: "green",
    State.FAILED: "red",
    State.CANCELLED: "red",
    State.UNCERTAIN: "bold yellow",
    State.WRITTEN_OFF: "yellow",
    State.SUBMITTED: "cyan",
    State.SUCCEEDED: "cyan",
}

NOTE_LENGTH = 60
"""Maximum characters of a note or prompt in a table that fits into a terminal."""

WIDE_TERMINAL = 110
"""Characters of a line from which the table has every short column."""

_FORMULA_SIGNS = {"=", "+", "-", "@", "\N{MINUS SIGN}"}

_CSV_COLUMNS = (
    "idempotency_key",
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
    "cost",
    "currency",
    "cost_source",
    "charges",
    "attempts",
    "flow_run_id",
    "deployment",
    "tags",
    "failure_code",
    "request_id",
    "note",
    "evidence",
    "uris",
    "sha256",
)


def as_csv(entries: Sequence[Entry]) -> str:
    """Return the entries as CSV, one row each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for entry in entries:
        row = as_json(entry)
        writer.writerow([csv_cell(row[name]) for name in _CSV_COLUMNS])
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """Return a value as a cell of CSV, in which a spreadsheet sees no formula; pure."""
    if isinstance(value, list):
        value = " ".join(value)
    if not isinstance(value, str):
        return "" if value is None else value
    return f"'{printable(value)}" if may_be_formula(value) else printable(value)


def may_be_formula(text: str) -> bool:
    """Return True if a spreadsheet may evaluate a cell as a formula; pure.

    Spreadsheets skip blanks and control characters before the first sign, and some treat its
    full-width and other compatibility forms as the sign itself.
    """
    for sign in text:
        if not sign.isprintable():
            return True
        if not sign.isspace():
            return unicodedata.normalize("NFKC", sign)[:1] in _FORMULA_SIGNS
    return False


def _videos(entry: Entry) -> list[StoredVideo]:
    return [video for stored in entry.videos.values() for video in stored]


def as_json(entry: Entry) -> dict[str, Any]:
    """Return all recorded facts about an entry, as JSON data."""
    videos = _videos(entry)
    return {
        **entry.model_dump(mode="json", exclude={"claim", "leased_until", "lease_left"}),
        "waited": round(entry.waited, 3),
        "uris": " ".join(video.uri for video in videos),
        "sha256": " ".join(dict.fromkeys(video.sha256 for video in videos)),
    }


def facts_of(entry: Entry) -> dict[str, str]:
    """Return the recorded facts about an entry by name, without empty ones."""
    request = json_text.dumps(entry.request, ensure_ascii=False) if entry.request else ""
    facts = {
        "idempotency key": entry.idempotency_key,
        "state": str(entry.state),
        "note": entry.note,
        "failure": entry.failure_code,
        "task id": f"{entry.task_id}{_unconfirmed(entry)}" if entry.task_id else "",
        "request id": entry.request_id or "",
        "service": entry.base_url,
        "model": " ".join(filter(None, [entry.route, entry.model])),
        "request": request,
        "billed": f"{entry.billed_seconds:g} s of video" if entry.billed_seconds else "",
        "claimed": shown_time(entry.created_at),
        "last sent": shown_time(entry.claimed_at),
        "submitted": shown_time(entry.submitted_at),
        "finished": shown_time(entry.finished_at),
        "stored": shown_time(entry.stored_at),
        "polls": str(entry.polls or ""),
        "submissions": str(entry.attempts),
        "cost": shown_cost(entry.cost, entry.currency, entry.cost_source),
        "charged so far": _charged(entry),
        "evidence": entry.evidence,
        "flow run": entry.flow_run_id or "",
        "deployment": entry.deployment or entry.deployment_id or "",
        "tags": ", ".join(entry.tags or ()),
        "lease owner": describe_owner(entry.owner) if entry.owner else "",
        "videos": "\n".join(video.uri for video in _videos(entry)),
    }
    return {name: value for name, value in facts.items() if value}


def _charged(entry: Entry) -> str:
    """Return the amount charged or possibly charged for an entry, or an empty text."""
    if not entry.charges:
        return ""
    seconds = ASSUMED_SECONDS if entry.billed_seconds is None else entry.billed_seconds
    money = None if entry.cost is None else entry.charges * entry.cost
    return in_words(entry.charges * seconds, money)


def _unconfirmed(entry: Entry) -> str:
    return "" if entry.task_id_checked else " (not confirmed by CometAPI)"


def shown_time(time: datetime | None) -> str:
    """Return a time in UTC, or an empty text."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else ""


def table_of(entries: Sequence[Entry], width: int | None) -> Table:
    """Return a table with one row for each entry.

    Args:
        entries: Entries in their order.
        width: Characters of a line, or None for every column with complete ids and texts.
    """
    wide = width is None
    shown = [_wide_row(entry) if wide else _row(entry) for entry in entries]
    if width is not None and width < WIDE_TERMINAL:
        shown = [_without(row, "model", "waited", "billed (s)") for row in shown]
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for name in shown[0] if shown else ():
        is_number = name in {"waited", "billed (s)", "cost"}
        folds = name in {"idempotency key", "video or note"} and not wide
        table.add_column(
            name, justify="right" if is_number else "left", overflow="fold", no_wrap=not folds
        )
    for row in shown:
        table.add_row(*row.values())
    return table


def _row(entry: Entry) -> dict[str, str]:
    return {
        "idempotency key": escape(entry.idempotency_key),
        "state": _state(entry),
        "task id": escape((entry.task_id or "")[:8]),
        "model": escape(entry.model or ""),
        "created (UTC)": f"{entry.created_at:%m-%d %H:%M}",
        "waited": f"{entry.waited:.0f} s" if entry.waited else "",
        "billed (s)": f"{entry.billed_seconds:g}" if entry.billed_seconds else "",
        "video or note": escape(_files(entry) or _shortened(_note(entry) or _prompt(entry))),
    }


def _wide_row(entry: Entry) -> dict[str, str]:
    return {
        **_without(_row(entry), "video or note"),
        "task id": escape(entry.task_id or ""),
        "created (UTC)": f"{entry.created_at:%Y-%m-%d %H:%M:%S}",
        "cost": escape(shown_cost(entry.cost, entry.currency, entry.cost_source)),
        "service": escape(entry.base_url),
        "prompt": escape(_one_line(_prompt(entry))),
        "video": escape(_files(entry)),
        "note": escape(_one_line(_note(entry))),
    }


def _without(row: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in names}


def _state(entry: Entry) -> str:
    """Return the state with its colour, and a mark if the entry cost nothing."""
    colour = _COLOURS.get(entry.state, "default")
    mark = f" [dim]({SANDBOX})[/]" if service_name(entry.base_url) == SANDBOX else ""
    return f"[{colour}]{entry.state}[/]{mark}"


def _note(entry: Entry) -> str:
    return entry.note or entry.failure_code


def _prompt(entry: Entry) -> str:
    prompt = (entry.request or {}).get("promptText")
    return prompt if isinstance(prompt, str) else ""


def _files(entry: Entry) -> str:
    return " ".join(display_path(video.uri) for video in _videos(entry))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shortened(text: str) -> str:
    return shorten(text, NOTE_LENGTH, placeholder="…")
