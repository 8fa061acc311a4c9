# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi batch``: videos from a manifest, or an estimate of their cost."""

import asyncio
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators
from rich.console import Console
from rich.table import Table

from ...runway.batch.errors import BatchFailed
from ..console import bar, console, display_path, errors, escape, show_error
from ..prefect_env import quieten_prefect, start_prefect

if TYPE_CHECKING:
    from ...flows.batch.progress import ProgressSnapshot
    from ...runway.batch.models import BatchResult, ItemResult

_SHOWN = 10
_COUNT = validators.Number(gte=1)
_AMOUNT = validators.Number(gte=0)


def batch(
    manifest: Annotated[
        str,
        Parameter(
            help="Path or fsspec URL of a JSONL, CSV or Parquet file with one request per row."
        ),
    ],
    *,
    storage: Annotated[
        str | None, Parameter(help="Folder, fsspec URL or Prefect storage block for the videos.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Parameter(
            help="Idempotency key of the batch, with which the keys of the items begin (default: "
            "derived from the path of the manifest)."
        ),
    ] = None,
    output: Annotated[
        str | None, Parameter(help="File for the results (.jsonl or .parquet).")
    ] = None,
    max_in_flight: Annotated[
        int | None,
        Parameter(
            help="Maximum number of generations in flight (default: COMETAPI_MAX_IN_FLIGHT).",
            validator=_COUNT,
        ),
    ] = None,
    max_spend: Annotated[
        float | None,
        Parameter(
            help="Spending limit of the batch, for all of its runs together, in the currency of "
            "COMETAPI_PRICES.",
            validator=_AMOUNT,
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        Parameter(
            help="Limit in seconds of video, for all runs of the batch together.", validator=_AMOUNT
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        Parameter(help="Stop buying after more failures than this.", validator=_AMOUNT),
    ] = None,
    strict: Annotated[
        bool, Parameter(negative="", help="Buy nothing if any row is not valid.")
    ] = False,
    ignore_balance: Annotated[
        bool,
        Parameter(
            negative="",
            help="Start even if the account's balance does not cover the estimated cost.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        Parameter(negative="", help="Check the rows and estimate the cost. Buys nothing."),
    ] = False,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """Make a video from each row of a manifest. A repeated run buys only what is missing."""
    quieten_prefect()
    from ...flows import generate_batch
    from ...flows.batch.plan import foreseen

    if dry_run:
        result = asyncio.run(foreseen(manifest, idempotency_key, storage))
        _show_estimate(result)
        sys.exit(1 if result.failed else 0)
    try:
        with _progress(errors if json else console):
            start_prefect()
            result = generate_batch(
                manifest,
                storage=storage,
                idempotency_key=idempotency_key,
                output=output,
                max_in_flight=max_in_flight,
                max_spend=max_spend,
                max_seconds=max_seconds,
                max_failures=max_failures,
                strict=strict,
                ignore_balance=ignore_balance,
            )
    except BatchFailed as failed:
        show_error(failed)
        if failed.result:
            _show(failed.result, json=json)
        sys.exit(1)
    _show(result, json=json)
    sys.exit(0 if result.succeeded == len(result.results) else 1)


def _show_estimate(result: "BatchResult") -> None:
    """Print the number of videos in a manifest and their estimated cost."""
    from ...runway.batch.models import Outcome
    from ...runway.ledger.figures import figures

    bad = result.count(Outcome.INVALID)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value in {
        "videos": f"{len(result.results) - bad:,}",
        "stored already": f"{result.succeeded:,}",
        **figures(result.spending, of_run=False),
        "idempotency key": result.idempotency_key,
    }.items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    console.print(table)
    _list([item for item in result.results if item.outcome is Outcome.INVALID])


def _show(result: "BatchResult", *, json: bool) -> None:
    if json:
        console.print_json(result.model_dump_json())
        return
    from ...flows.batch.artifacts import span
    from ...runway.batch.outcomes import Again, again
    from ...runway.ledger.figures import figures

    console.print(f"\n[bold]{result.sentence()}[/] in {span(result.seconds)}")
    for name, amount in figures(result.spending).items():
        console.print(f"  [dim]{name}:[/] {amount}", soft_wrap=True)
    for name, location in (("results", result.output), ("gallery", result.gallery)):
        if location:
            console.print(f"  [dim]{name}:[/] {escape(display_path(location))}", soft_wrap=True)
    unstored = [item for item in result.results if item.uri is None]
    _list(unstored)
    if result.uncertain:
        console.print("  [dim]Next:[/] prefect-cometapi ledger list --state uncertain")
    use = again(result.results)
    if use is not Again.NOTHING:
        purpose = "to buy what is missing" if use is Again.BUYS else "to finish what was bought"
        console.print(f"  [dim]Next, {purpose}:[/] {escape(_as_typed())}", soft_wrap=True)


def _list(items: "list[ItemResult]") -> None:
    if items:
        console.print()
    for item in items[:_SHOWN]:
        reason = item.problem() or "not started"
        line = f"  {escape(item.id)} [yellow]{item.outcome}[/] {escape(reason)}"
        console.print(line, soft_wrap=True)
    if len(items) > _SHOWN:
        console.print(f"  … and {len(items) - _SHOWN:,} more")


@contextmanager
def _progress(where: Console) -> Iterator[None]:
    """Show a progress bar for all items, with their counts, while the batch runs."""
    from ...flows.batch.artifacts import span
    from ...flows.batch.progress import batch_listener

    def listen(snapshot: "ProgressSnapshot") -> None:
        left = f", {span(snapshot.left)} left" if snapshot.left else ""
        move(
            description=f"{snapshot.sentence()}{left}",
            total=snapshot.total,
            completed=snapshot.done,
        )

    token = batch_listener.set(listen)
    try:
        with bar("batch", where) as move:
            yield
    except KeyboardInterrupt:
        errors.print(
            "[yellow]Interrupted.[/] Submitted generations continue at CometAPI and are charged "
            "if they succeed.",
            soft_wrap=True,
        )
        errors.print(f"  [dim]Next:[/] {escape(_as_typed())}", soft_wrap=True)
        raise
    finally:
        batch_listener.reset(token)


def _as_typed() -> str:
    return shlex.join(["prefect-cometapi", *sys.argv[1:]])
