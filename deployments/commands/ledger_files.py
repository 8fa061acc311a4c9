# SPDX-License-Identifier: Apache-2.0
"""Commands ``ledger backup`` and ``ledger rebuild``: copies of a ledger and lost entries."""

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

LOCK_TIMEOUT = 30.0
"""Seconds to wait for a process that is writing to the ledger."""

if TYPE_CHECKING:
    from ...runway.ledger.rebuild import Rebuilt


def backup(
    path: Annotated[
        Path, Parameter(help="File to write, or a folder for a file that is named by the time.")
    ],
) -> None:
    """Copy a SQLite ledger, even while it is in use. The copy is checked; it has no secrets."""
    quieten_prefect()
    try:
        copy = asyncio.run(_backed_up(path))
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"the ledger was not copied: {error}") from None
    console.print(f"[green]✓[/] Ledger copied to {escape(str(copy))}", soft_wrap=True)
    console.print(
        "  [dim]To restore it:[/] stop all runs, replace the ledger file with the copy, then: "
        "prefect-cometapi ledger rebuild",
        soft_wrap=True,
    )


async def _backed_up(path: Path) -> Path:
    from ...flows.runtime.ledger_access import open_ledger

    ledger = await open_ledger()
    file = ledger.database.file
    if file is None:
        raise LedgerUnavailable(
            "this command copies SQLite ledgers only; for PostgreSQL, use: pg_dump --table "
            "'cometapi_*' DATABASE"
        )
    await ledger.history.mark()  # migrates an older ledger before the copy
    return await asyncio.to_thread(copy_ledger, file, path)


def copy_ledger(file: Path, path: Path) -> Path:
    """Copy a consistent state of a SQLite ledger, and return the path of the copy.

    Raises:
        OSError: The file exists already, or it cannot be written.
        sqlite3.Error: The ledger cannot be read, or the copy fails SQLite's integrity check.
    """
    if path.is_dir():
        path /= f"{file.stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}{file.suffix}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with (
            FileLock(file, LOCK_TIMEOUT).held(),
            closing(sqlite3.connect(file)) as source,
            closing(sqlite3.connect(path)) as copy,
        ):
            source.backup(copy)
            if copy.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the copy failed SQLite's integrity check")
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
        Parameter(
            help="Storage with videos of this ledger (default: COMETAPI_STORAGE). Repeatable.",
            negative="",
            show_default=False,
        ),
    ] = (),
    accept_missing: Annotated[
        bool,
        Parameter(
            negative="", help="Allow purchases although some recorded ones have no stored video."
        ),
    ] = False,
) -> None:
    """Restore lost entries of a ledger from the stored videos. Buys nothing."""
    quieten_prefect()
    missing = asyncio.run(_rebuilt(storage or (CometAPISettings().storage,), accept_missing))
    if missing and not accept_missing:
        errors.print(
            f"[yellow]Up to {missing} purchases are missing[/] in this ledger and in the stored "
            "videos. Each may be rendering, failed or refused. Nothing is bought until you decide:",
            soft_wrap=True,
        )
        for command, when in (
            ("adopt KEY TASK_ID", "for each one in CometAPI's console"),
            ("rebuild --storage LOCATION", "if videos are also in another storage"),
            (
                "rebuild --accept-missing",
                "to allow purchases; a run with a missing idempotency key pays again",
            ),
        ):
            errors.print(f"  prefect-cometapi ledger {command}  [dim]{when}[/]", soft_wrap=True)
        sys.exit(1)
    console.print("  [dim]Runs with this ledger can buy again.[/]")


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
        _report(canonical_location(name), found)
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


def _report(location: str, found: "Rebuilt") -> None:
    console.print(
        f"[green]✓[/] {escape(location)}: {found.videos} stored videos; purchases already in the "
        f"ledger: {found.known}; restored: {len(found.restored)}",
        soft_wrap=True,
    )
    for key, name in found.renamed.items():
        note = f"{key} belongs to another purchase now; this one is restored as {name}"
        console.print(f"  [yellow]![/] {escape(note)}", soft_wrap=True)
    for name in found.unreadable[:5]:
        console.print(f"  [yellow]![/] unreadable: {escape(name)}", soft_wrap=True)
    if (more := len(found.unreadable) - 5) > 0:
        console.print(f"  [yellow]![/] and {more} more")
