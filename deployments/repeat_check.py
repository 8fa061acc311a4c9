# SPDX-License-Identifier: Apache-2.0
"""Question before a command buys a request that was bought a moment ago.

Each run of a command has a key of its own, so the same command buys another video each time. A user
who repeats it within minutes may only want to see the first result, for example after an error that
came later than the purchase.
"""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ..flows.runtime.block_loading import is_block_name
from ..flows.runtime.ledger_access import open_ledger
from ..runway.errors import CometAPIError
from ..runway.ledger.entry import Entry, State
from ..runway.models.keys import variation_of
from ..runway.models.requests import GenerationRequest
from ..runway.settings import CometAPISettings
from .connection import connect
from .console import display_path, errors, escape

RECENT = timedelta(minutes=15)
"""Age of a purchase up to which the same request may be a repetition by mistake."""

MAX_ENTRIES = 500
"""Maximum number of the newest purchases that are compared."""

BOUGHT = (State.CLAIMED, State.UNCERTAIN, State.SUBMITTED, State.SUCCEEDED, State.STORED)
"""States of a generation that was bought, or possibly, and has not failed."""


class Repetition(NamedTuple):
    """Earlier purchase of the same request, and the next variation that is free of such."""

    entry: Entry
    next_variation: int


def repetition(same: Sequence[Entry], variation: int) -> Repetition | None:
    """Return the purchase that a command repeats, or None; pure.

    Args:
        same: Recent purchases of the same request, newest first.
        variation: Variation that the command asks for; the first one repeats any of them.
    """
    variations = [variation_of(entry.idempotency_key) for entry in same]
    for entry, number in zip(same, variations, strict=True):
        if variation in {1, number}:
            return Repetition(entry, max(variations) + 1)
    return None


def described(entry: Entry, now: datetime) -> str:
    """Return the age of an earlier purchase and where its video is, as a sentence; pure."""
    minutes = max(0, round((now - entry.created_at).total_seconds() / 60))
    age = f"{minutes} minutes ago" if minutes > 1 else "a moment ago"
    stored = [video.uri for videos in entry.videos.values() for video in videos]
    if stored:
        where = ", ".join(map(display_path, stored))
        return f"the same request was bought {age}, and is stored: {where}"
    if entry.task_id:
        task_id = entry.task_id
        return f"the same request was bought {age}: prefect-cometapi finish {task_id} stores it"
    return (
        f"the same request was sent {age}, and is possibly charged: prefect-cometapi ledger list "
        "shows what became of it"
    )


async def earlier_purchases(settings: CometAPISettings, request: GenerationRequest) -> list[Entry]:
    """Return the recent purchases of the same request in the ledger, newest first.

    Stored sources are read only if an earlier request names the same ones: their content may have
    changed since.
    """
    from ..runway.sources.preparation import MIN_VALIDITY, prepare

    ledger = await open_ledger(settings)
    entries = await ledger.entries(
        states=BOUGHT,
        since=datetime.now(UTC) - RECENT,
        limit=MAX_ENTRIES,
        on_corrupted=lambda _error: None,
    )
    same = [it for it in entries if it.base_url == settings.base_url and it.is_of(request)]
    if not same or not request.stored_sources():
        return same
    from ..flows.runtime.block_sources import open_source

    prepared = await prepare(request, open_source, MIN_VALIDITY)
    fingerprint = request.fingerprint(prepared.versions)
    return [entry for entry in same if entry.fingerprint == fingerprint]


def confirm_repetition(
    settings: CometAPISettings, request: GenerationRequest, variation: int
) -> None:
    """Ask in a terminal whether to buy a request again that was just bought; elsewhere, warn.

    A ledger or a source that cannot be read is reported by the flow itself. A ledger in a block
    is asked of Prefect, which is started for that if it has to be.

    Raises:
        SystemExit: The user does not want another one; nothing was bought.
    """
    if settings.ledger_url and is_block_name(settings.ledger_url.get_secret_value()):
        connect(lambda: None, lambda _text: None)
    try:
        same = asyncio.run(earlier_purchases(settings, request))
    except CometAPIError:
        return
    found = repetition(same, variation)
    if found is None:
        return
    sentence = escape(described(found.entry, datetime.now(UTC)))
    wanted = f"--variation {found.next_variation} or --idempotency-key KEY"
    if not (_is_terminal(sys.stdin) and errors.is_terminal):
        errors.print(f"[yellow]Warning:[/] {sentence}", soft_wrap=True)
        errors.print(f"  This buys another one. If it is wanted: {wanted}", soft_wrap=True)
        return
    errors.print(f"[yellow]Repeated:[/] {sentence}", soft_wrap=True)
    errors.print(f"Buy another one? ({wanted} does not ask) [dim]\\[y/N][/] ", end="")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        errors.print("Nothing was bought.")
        sys.exit(1)


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and not getattr(stream, "closed", False) and isatty())
