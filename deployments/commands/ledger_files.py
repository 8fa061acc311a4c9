# SPDX-License-Identifier: Apache-2.0
"""Commands ``ledger backup`` and ``rebuild``: copies of a ledger, and recovery of its entries."""

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ...runway.errors import LedgerUnavailable, StorageError
from ...runway.ledger.file_lock import FileLock
from ...runway.settings import CometAPISettings
from ..console import console, errors, escape
from ..prefect_env import quieten_prefect

PATIENCE = 30.0
"""Seconds to wait for a process that is writing the ledger."""

if TYPE_CHECKING:
    from ...runway.ledger.rebuild import Rebuilt


def backup(
    path: Annotated[
        Path, Parameter(help="File to write, or a folder for one that is named after the time.")
    ],
) -> None:
    """Copy a SQLite ledger, even while it is in use. The copy is checked and holds no secret."""
    quieten_prefect()
    try:
        copy = asyncio.run(_backed_up(path))
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"no copy was made: {error}") from None
    console.print(f"[green]✓[/] {escape(str(copy))}", soft_wrap=True)
    console.print(
        "  [dim]To use it:[/] put it in the ledger's place while no run buys, then "
        "prefect-cometapi ledger rebuild",
        soft_wrap=True,
    )


async def _backed_up(path: Path) -> Path:
    from ...flows.runtime.ledger_access import open_ledger

    ledger = await open_ledger()
    file = ledger.database.file
    if file is None:
        raise LedgerUnavailable(
            "this ledger lies in PostgreSQL, which has a tool of its own: pg_dump --table "
            "'cometapi_*' DATABASE"
        )
    await ledger.history.mark()  # this brings an older ledger up to date first
    return await asyncio.to_thread(copy_ledger, file, path)


def copy_ledger(file: Path, path: Path) -> Path:
    """Copy a SQLite ledger as it is at one moment, and return the path of the copy.

    Raises:
        OSError: A file of that name already exists, or it cannot be written.
        sqlite3.Error: The ledger cannot be read, or the copy fails SQLite's integrity check.
    """
    if path.is_dir():
        path /= f"{file.stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}{file.suffix}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with (
            FileLock(file, PATIENCE).held(),
            closing(sqlite3.connect(file)) as source,
            closing(sqlite3.connect(path)) as copy,
        ):
            source.backup(copy)
            if copy.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the copy is not sound")
        os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return path


def rebuild(
    *,
    storage: Annotated[
        tuple[str, ...],
        Parameter(help="Storage with videos of this ledger; may be repeated.", negative=""),
    ] = (),
    accept_missing: Annotated[
        bool,
        Parameter(negative="", help="Buy again though some purchases are in no stored video."),
    ] = False,
) -> None:
    """Restore lost entries of a ledger from stored videos. It buys nothing."""
    quieten_prefect()
    missing = asyncio.run(_rebuilt(storage or (CometAPISettings().storage,), accept_missing))
    if missing and not accept_missing:
        errors.print(
            f"[yellow]Claims that no stored video explains: up to {missing}[/]. They may be "
            "rendering, have failed, or have been refused. Nothing is bought until you decide:",
            soft_wrap=True,
        )
        for command, when in (
            ("adopt KEY TASK_ID", "for each that CometAPI's console shows"),
            ("rebuild --storage PLACE", "if videos lie in another storage, too"),
            (
                "rebuild --accept-missing",
                "to go on; a forgotten key that is run again is paid again",
            ),
        ):
            errors.print(f"  prefect-cometapi ledger {command}  [dim]{when}[/]", soft_wrap=True)
        sys.exit(1)
    console.print("  [dim]Runs with this ledger may buy again.[/]")


async def _rebuilt(storages: tuple[str, ...], accept_missing: bool) -> int:
    from ...flows.runtime.block_storage import canonical_location, resolve_storage
    from ...flows.runtime.ledger_access import open_ledger
    from ...runway.ledger.marks import highest_serial, read_marks
    from ...runway.ledger.rebuild import missing_claims, rebuild

    ledger = await open_ledger()
    before, beside = await ledger.history.mark(), ledger.history.mark_beside()
    marks, serials = [beside] if beside else [], set[int]()
    for name in storages:
        target = await resolve_storage(name)
        try:
            found = await rebuild(
                ledger,
                target,
                location=canonical_location(name),
                base_url=CometAPISettings().base_url,
            )
        except StorageError as error:
            raise StorageError(f"{name}: {error.message}") from None
        _tell(canonical_location(name), found)
        marks += await asyncio.to_thread(read_marks, target, before.identity)
        serials |= found.serials.get(beside.identity if beside else before.identity, set())
    replaced = beside is not None and beside.identity != before.identity
    identity = beside.identity if beside and replaced else before.identity
    highest = highest_serial(marks, identity)
    missing = missing_claims(
        0 if replaced else before.serial,
        highest,
        in_ledger=set() if replaced else await ledger.history.claims_since(before.serial),
        in_sidecars=serials,
    )
    if accept_missing or not missing:
        await ledger.history.accept_missing(0 if replaced else highest)
    return missing


def _tell(place: str, found: "Rebuilt") -> None:
    console.print(
        f"[green]✓[/] {escape(place)}: stored videos: {found.videos}; purchases known before: "
        f"{found.known}; restored: {len(found.restored)}",
        soft_wrap=True,
    )
    for key, name in found.renamed.items():
        told = f"{key} stands for another purchase by now; this one is {name}"
        console.print(f"  [yellow]![/] {escape(told)}", soft_wrap=True)
    for name in found.unreadable[:5]:
        console.print(f"  [yellow]![/] cannot be read: {escape(name)}", soft_wrap=True)
    if (more := len(found.unreadable) - 5) > 0:
        console.print(f"  [yellow]![/] and {more} more")
