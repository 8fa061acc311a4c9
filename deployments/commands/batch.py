# SPDX-License-Identifier: Apache-2.0
"""Command ``prefect-cometapi batch``: videos from a manifest, or an estimate of their cost."""

import asyncio
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import Parameter, validators
from rich.console import Console
from rich.table import Table

from ...runway.batch.errors import BatchFailed, InvalidManifest, first_names
from ...runway.batch.manifest import check_manifest
from ...runway.batch.table_files import FileFormat
from ..connection import connect
from ..console import bar, console, display_path, errors, escape, show_error, waits_shown
from ..prefect_env import quieten_prefect
from ..preflight import (
    check_blocks,
    check_every_row,
    check_purchase,
    check_settings,
    check_spending_limit,
)

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
            help="Path or fsspec URL of a JSONL, CSV or Parquet file with one request per row, or "
            "of a folder of them."
        ),
    ],
    *,
    credentials: Annotated[
        str | None,
        Parameter(
            help="Name of the saved credentials block with the API key (default: COMETAPI_KEY)."
        ),
    ] = None,
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
        bool,
        Parameter(
            negative="", help="Buy nothing if any row is not valid, and list every such row."
        ),
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
    format_: Annotated[
        Literal["csv", "jsonl", "parquet"] | None,
        Parameter(
            name="--format",
            help="Format of the manifest, if neither its name nor its content says it.",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        Parameter(
            help="Encoding of the manifest, such as windows-1252 (default: by its byte order mark, "
            "else UTF-8)."
        ),
    ] = None,
    shards: Annotated[
        int,
        Parameter(
            help="Number of flow runs that share the batch, on the workers of a deployment of the "
            "flow generate-batch-shard.",
            validator=_COUNT,
        ),
    ] = 1,
    shard_deployment: Annotated[
        str | None,
        Parameter(help="Deployment that runs the shards (default: the only one there is)."),
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """Make a video from each row of a manifest. A repeated run buys only what is missing."""
    if dry_run:
        check_spending_limit(max_spend, check_settings())
        quieten_prefect()
        from ...flows.batch import plan

        reading = plan.Reading(format_, encoding)
        result = asyncio.run(
            plan.dry_run(
                manifest,
                idempotency_key,
                storage,
                reading,
                max_spend=max_spend,
                max_seconds=max_seconds,
            )
        )
        if json:
            console.print_json(result.model_dump_json())
        else:
            _show_estimate(result, every=strict)
        sys.exit(1 if result.failed else 0)
    known_format = FileFormat[format_.upper()] if format_ else None
    try:
        check_manifest(manifest, known_format)
        if strict:
            check_every_row(manifest, known_format, encoding)
    except InvalidManifest as error:
        _refuse(error)
    settings = check_purchase(storage, credentials)
    check_spending_limit(max_spend, settings)
    quieten_prefect()
    try:
        with _progress(errors if json else console, shards) as (generate_batch, end):
            check_blocks(settings, storage or settings.storage, credentials)
            result = generate_batch(
                manifest,
                credentials=credentials,
                storage=storage,
                idempotency_key=idempotency_key,
                output=output,
                max_in_flight=max_in_flight,
                max_spend=max_spend,
                max_seconds=max_seconds,
                max_failures=max_failures,
                strict=strict,
                ignore_balance=ignore_balance,
                manifest_format=format_,
                manifest_encoding=encoding,
                shards=shards,
                shard_deployment=shard_deployment,
            )
            end(result)
    except InvalidManifest as error:
        if not strict:
            raise
        _refuse(error)
    except BatchFailed as failed:
        show_error(failed)
        if failed.result:
            _show(failed.result, json=json)
        sys.exit(1)
    _show(result, json=json)
    sys.exit(0 if result.succeeded == len(result.results) else 1)


def _refuse(error: InvalidManifest) -> NoReturn:
    """Print every problem of a manifest, one line each, and exit with 1."""
    for row in error.rows:
        errors.print(f"  {escape(str(row))}", soft_wrap=True)
    show_error(error)
    sys.exit(1)


def _show_estimate(result: "BatchResult", *, every: bool) -> None:
    """Print the number of videos in a manifest and their estimated cost.

    Args:
        result: Expected result.
        every: True to list each invalid row by itself.
    """
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
    invalid = [item for item in result.results if item.outcome is Outcome.INVALID]
    if every:
        for item in invalid:
            console.print(f"  {escape(item.id)} {escape(item.problem() or '')}", soft_wrap=True)
    else:
        _list(invalid)


def _show(result: "BatchResult", *, json: bool) -> None:
    if json:
        console.print_json(result.model_dump_json())
        return
    from ...flows.batch.artifacts import span
    from ...runway.batch.outcomes import Again, again, corrections
    from ...runway.ledger.figures import figures

    console.print(f"\n[bold]{result.sentence()}[/] in {span(result.seconds)}")
    for name, amount in figures(result.spending).items():
        console.print(f"  [dim]{name}:[/] {amount}", soft_wrap=True)
    for name, location in (("results", result.output), ("gallery", result.gallery)):
        if location:
            console.print(f"  [dim]{name}:[/] {escape(display_path(location))}", soft_wrap=True)
    unstored = [item for item in result.results if item.uri is None]
    _list(unstored)
    for step in corrections(result.results):
        console.print(f"  [dim]Next:[/] {escape(step)}", soft_wrap=True)
    if result.uncertain:
        console.print("  [dim]Next:[/] prefect-cometapi ledger list --state uncertain")
    use = again(result.results)
    if use is not Again.NOTHING:
        purpose = "to buy what is missing" if use is Again.BUYS else "to finish what was bought"
        console.print(f"  [dim]Next, {purpose}:[/] {escape(_as_typed())}", soft_wrap=True)


def _list(items: "list[ItemResult]") -> None:
    if items:
        console.print()
    same: dict[tuple[str, str], list[ItemResult]] = {}
    for item in items:
        same.setdefault((item.outcome, item.problem() or "not started"), []).append(item)
    left = len(items)
    for (outcome, reason), alike in list(same.items())[:_SHOWN]:
        names = first_names([item.id for item in alike])
        line = f"  {escape(names)} [yellow]{outcome}[/] {escape(reason)}"
        console.print(line, soft_wrap=True)
        left -= len(alike)
    if left:
        console.print(f"  … and {left:,} more")


@contextmanager
def _progress(
    where: Console, shards: int
) -> Iterator[tuple[Callable[..., "BatchResult"], Callable[["BatchResult"], None]]]:
    """Show a progress bar for all items, with their counts, while the batch runs.

    Args:
        where: Console for the progress bar.
        shards: Number of flow runs that share the batch.

    Yields:
        The flow, when Prefect has been started, and the function that shows the end of its run.
    """

    def listen(snapshot: "ProgressSnapshot") -> None:
        from ...flows.batch.artifacts import span

        left = f", {span(snapshot.left)} left" if snapshot.left else ""
        move(
            description=f"{snapshot.sentence()}{left}",
            total=snapshot.total,
            completed=snapshot.done,
        )

    try:
        with bar("batch", where) as move:
            flow = connect(_load, lambda text: move(description=text))
            move(description="checking rows, sources and the ledger")
            with _listening(listen), waits_shown(move):
                yield flow, partial(_end, move)
    except KeyboardInterrupt:
        continuing = (
            "The shards continue on their workers, and buy the rest. The same command attaches to "
            "them; to stop one, cancel its run of generate-batch-shard in the UI."
            if shards > 1
            else "Submitted generations continue at CometAPI and are charged if they succeed."
        )
        errors.print(f"[yellow]Interrupted.[/] {continuing}", soft_wrap=True)
        errors.print(f"  [dim]Next:[/] {escape(_as_typed())}", soft_wrap=True)
        raise


def _end(move: Callable[..., None], result: "BatchResult") -> None:
    """Show the end of a batch: a tick only if every video is stored."""
    move(
        description=result.sentence(),
        total=1.0,
        completed=1.0,
        failed=result.succeeded < len(result.results),
    )


def _load() -> Callable[..., "BatchResult"]:
    from ...flows import generate_batch

    return generate_batch


@contextmanager
def _listening(listen: Callable[["ProgressSnapshot"], None]) -> Iterator[None]:
    from ...flows.batch.progress import batch_listener

    token = batch_listener.set(listen)
    try:
        yield
    finally:
        batch_listener.reset(token)


def _as_typed() -> str:
    return shlex.join(["prefect-cometapi", *sys.argv[1:]])
