# SPDX-License-Identifier: Apache-2.0
"""Commands ``ledger export`` and ``ledger report``: costs for finance."""

import asyncio
import csv
import io
import json as json_text
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from ...runway.batch.table_files import Unreadable, parquet_module
from ...runway.errors import InvalidRequest, LedgerCorrupted
from ...runway.ledger.cost_sums import By, CostSums, Group, Sum
from ...runway.ledger.entry import Entry
from ...runway.ledger.focus import COLUMNS, focus_row
from ...runway.models.prices import shown_cost
from ...runway.redact import reason_of
from ..console import console, errors, escape, show_error
from ..output import OUTPUT
from ..prefect_env import quieten_prefect
from .ledger_period import check_time, since_time
from .ledger_table import csv_cell

ROWS_AT_ONCE = 5_000
"""Rows of one group of a Parquet file, which are in memory at a time."""

Since = Annotated[
    str | None,
    Parameter(help="Only purchases since 90m, 12h, 3d ago or 2026-11-01.", validator=check_time),
]
Until = Annotated[
    str | None, Parameter(help="Only purchases before this time.", validator=check_time)
]

Add = Callable[[Entry], None]


class _Incomplete(Exception):
    """Corrupted rows, which would be missing in a file."""


class ExportFormat(StrEnum):
    """Format of an export."""

    CSV = "csv"
    PARQUET = "parquet"


def export(
    *,
    format: Annotated[ExportFormat, Parameter(help="Format of the rows.")] = ExportFormat.CSV,  # noqa: A002 -- the option's name
    output: Annotated[
        Path | None,
        Parameter(help="File to write (default: the standard output). Parquet needs one."),
    ] = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Export each charged or possibly charged generation with the columns of FOCUS 1.2.

    An unknown cost is an empty cell and never 0. x_IsUncertain marks purchases of which nobody
    knows if they were charged. ProviderName is "sandbox" for generations of a local sandbox.
    """
    if output is None and format is ExportFormat.PARQUET:
        raise InvalidRequest("a Parquet file cannot be printed: name it with --output FILE")
    open_rows = _csv_rows if format is ExportFormat.CSV else _parquet_rows
    try:
        with open_rows(output) as add:
            rows, corrupted = _read(add, since, until)
            if corrupted and output:
                raise _Incomplete
    except _Incomplete:
        errors.print(f"[red]{escape(str(output))} was not written.[/]", soft_wrap=True)
        sys.exit(1)
    except Unreadable as error:
        raise InvalidRequest(str(error)) from None
    except OSError as error:
        raise InvalidRequest(f"{output} cannot be written: {reason_of(error)}") from None
    if corrupted:
        sys.exit(1)
    if output:
        console.print(f"[green]✓[/] {escape(str(output))}: {rows} generations", soft_wrap=True)


def report(
    *,
    by: Annotated[By, Parameter(help="Property by which the costs are added up.")] = By.DAY,
    since: Since = None,
    until: Until = None,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """Report the costs by day, deployment or tag. Currencies and services are never added up.

    A generation with several tags counts under each of them. "uncertain" counts purchases of which
    nobody knows if they were charged, and "no cost" submissions whose cost is not known.
    """
    sums = CostSums(by)
    _, corrupted = _read(sums.add, since, until)
    found = sums.items()
    if json:
        shown = [_as_json(by, group, total) for group, total in found]
        OUTPUT.write(json_text.dumps(shown, indent=2) + "\n")
    elif found:
        console.print(_table_of(by, found))
    elif not corrupted:
        console.print("No charged generations found.")
    if corrupted:
        sys.exit(1)


def _read(add: Add, since: str | None, until: str | None) -> tuple[int, int]:
    """Pass each charged entry on; report corrupted rows, and return the number of both."""
    quieten_prefect()
    corrupted: list[LedgerCorrupted] = []
    start, end = (since_time(text) if text else None for text in (since, until))
    rows = asyncio.run(_passed_on(add, start, end, corrupted.append))
    for error in corrupted:
        show_error(error)
    if corrupted:
        errors.print(
            f"[red]The costs are incomplete: {len(corrupted)} rows are left out.[/]", soft_wrap=True
        )
    return rows, len(corrupted)


async def _passed_on(
    add: Add,
    since: datetime | None,
    until: datetime | None,
    on_corrupted: Callable[[LedgerCorrupted], None],
) -> int:
    from ...flows.runtime.ledger_access import open_ledger
    from ...runway.ledger.charged import charged_entries

    rows = 0
    ledger = await open_ledger()
    async for entry in charged_entries(ledger, since=since, until=until, on_corrupted=on_corrupted):
        add(entry)
        rows += 1
    return rows


@contextmanager
def _csv_rows(output: Path | None) -> Iterator[Add]:
    """Yield a function that writes an entry as CSV, to a file or to the standard output."""
    if output is None:
        yield _csv_writer(OUTPUT.write)
        return
    with _replacing(output) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield _csv_writer(file.write)


def _csv_writer(write: Callable[[str], Any]) -> Add:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")

    def put(cells: Any) -> None:
        writer.writerow(cells)
        write(line.getvalue())
        line.seek(0)
        line.truncate()

    def add(entry: Entry) -> None:
        put([csv_cell(_plain(value)) for value in focus_row(entry).values()])

    put(COLUMNS)
    return add


def _plain(value: Any) -> Any:
    """Return a cell of CSV: a time in UTC as FOCUS writes it, and a truth value in lower case."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return str(value).lower() if isinstance(value, bool) else value


@contextmanager
def _parquet_rows(output: Path | None) -> Iterator[Add]:
    """Yield a function that writes an entry to a Parquet file, in groups of rows."""
    parquet = parquet_module()
    import pyarrow as pa

    types = {
        str: pa.string(),
        float: pa.float64(),
        int: pa.int64(),
        bool: pa.bool_(),
        datetime: pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    waiting: list[dict[str, Any]] = []
    assert output is not None  # noqa: S101 -- `export` checks it
    with _replacing(output) as part, parquet.ParquetWriter(part, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def add(entry: Entry) -> None:
            waiting.append(focus_row(entry))
            if len(waiting) == ROWS_AT_ONCE:
                flush()

        yield add
        if waiting:
            flush()


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Yield a path beside a file, which replaces it if the block succeeds.

    A link stays a link to the file. Anything else is refused, because a file would replace it: a
    folder, or a device such as /dev/null.

    Raises:
        InvalidRequest: The path is not one of a regular file.
        OSError: It cannot be used.
    """
    with suppress(RuntimeError):  # links in a circle, before Python 3.13
        output = output.resolve()
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise InvalidRequest(
            f"{output} cannot be written: it is not a regular file. Name a file with --output, or "
            "leave it out to print CSV"
        )
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(output)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _as_json(by: By, group: Group, total: Sum) -> dict[str, Any]:
    def number(amount: Any) -> float | None:
        return None if amount is None else float(amount)

    return {
        str(by): group.name,
        "service": group.service,
        "currency": group.currency,
        "generations": total.generations,
        "submissions": total.submissions,
        "uncertain": total.uncertain,
        "seconds": number(total.seconds),
        "billed": number(total.billed),
        "estimated": number(total.estimated),
        "without_cost": total.without_cost,
    }


def _table_of(by: By, found: list[tuple[Group, Sum]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column(str(by), overflow="fold")
    table.add_column("service")
    for name in ("generations", "uncertain", "video (s)", "billed", "estimated", "no cost"):
        table.add_column(name, justify="right")
    for group, total in found:
        table.add_row(
            f"[dim](no {by})[/]" if group.name is None else escape(group.name),
            escape(group.service),
            str(total.generations),
            f"[yellow]{total.uncertain}[/]" if total.uncertain else "",
            f"{total.seconds.normalize():,f}" if total.seconds else "",
            *(
                escape(shown_cost(amount, group.currency, None))
                for amount in (total.billed, total.estimated)
            ),
            str(total.without_cost or ""),
        )
    return table
