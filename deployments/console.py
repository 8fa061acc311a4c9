# SPDX-License-Identifier: Apache-2.0
"""Terminal output of the commands: progress, tables of results, and errors."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn, TypeVar, cast

from pydantic import ValidationError
from rich import markup
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from ..runway.environment import problem_of, variable_of
from ..runway.errors import CometAPIError
from ..runway.models.generation import Generation, GenerationResult, Status, Submission
from ..runway.redact import printable
from ..runway.settings import CometAPISettings
from .connection import connect, uses_temporary_server
from .output import ERRORS, OUTPUT

if TYPE_CHECKING:
    from ..flows import CollectResult

T = TypeVar("T")

# An idempotency key may contain the name of an emoji, and the user has to be able to copy it.
console = Console(file=cast("IO[str]", OUTPUT), highlight=False, emoji=False)
errors = Console(file=cast("IO[str]", ERRORS), stderr=True, highlight=False, emoji=False)

WIDEST = 10_000
"""Columns of a table that is not made to fit into the terminal."""


def wide_console() -> Console:
    """Return a console for the standard output that breaks and shortens no line."""
    return Console(file=cast("IO[str]", OUTPUT), highlight=False, emoji=False, width=WIDEST)


_STATUS_TEXT = {
    Status.NOT_FOUND: "submitted, not found yet",
    Status.PENDING: "queued",
    Status.RUNNING: "rendering",
    Status.SUCCEEDED: "downloading and checking",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}

_NOT_VALID = {
    "CometAPISettings": "[red]The settings are not valid.[/] Nothing was sent or charged.",
    "SandboxConfig": "[red]The options are not valid.[/]",
}


def escape(text: str) -> str:
    """Escape rich markup in a text, and replace control characters."""
    return markup.escape(printable(text))


def exit_unknown_keys(keys: Sequence[str]) -> NoReturn:
    """Say that the ledger does not have these idempotency keys, and exit with status 1."""
    for key in keys:
        errors.print(f"[red]The ledger has no idempotency key {escape(key)}.[/]", soft_wrap=True)
    errors.print("  [dim]Next:[/] prefect-cometapi ledger list")
    sys.exit(1)


class _Mark(SpinnerColumn):
    """Spinner that ends as a tick, or as a cross if the task has failed."""

    def render(self, task: Task) -> RenderableType:
        return Text("✗", style="red") if task.fields["failed"] else super().render(task)


@contextmanager
def bar(title: str, where: Console) -> Iterator[Callable[..., None]]:
    """Show a progress bar while the block runs, and yield the function that updates it.

    After an error in the block, the bar stays as it is, with a cross; where the output is no
    terminal, the bar is not printed then.
    """
    columns = (
        _Mark("dots" if where.encoding.startswith("utf") else "line", finished_text="[green]✓[/]"),
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(bar_width=28),
        TextColumn("{task.description}", justify="left"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=where) as progress:
        line = progress.add_task("loading Prefect", total=None, title=escape(title), failed=False)
        try:
            yield partial(progress.update, line)
        except BaseException as error:
            if progress.tasks[0].total is None:
                progress.update(line, total=1.0)  # a bar without an end would move on
            is_stopped = isinstance(error, KeyboardInterrupt)
            progress.update(
                line,
                visible=where.is_terminal,
                failed=True,
                description="interrupted" if is_stopped else "failed",
            )
            raise


@contextmanager
def progress_of(
    title: str, load: Callable[[], T], where: Console = console, done: str = "stored"
) -> Iterator[T]:
    """Show a progress bar while Prefect is started and the block runs flows; it stays at the end.

    Args:
        title: Title of the bar.
        load: Function that imports what the block needs, once Prefect is there; it is yielded.
        where: Console of the bar.
        done: Description at the end.
    """
    task_id = ""

    def listen(submission: Submission, reply: Generation) -> None:
        nonlocal task_id
        task_id = submission.task_id
        share = 1.0 if reply.status is Status.SUCCEEDED else reply.progress
        move(
            description=f"{escape(submission.short_id)} {_STATUS_TEXT[reply.status]}",
            total=1.0,
            completed=min(share or 0.0, 0.99),
        )

    try:
        with bar(title, where) as move:
            loaded = connect(load, lambda text: move(description=text))
            move(description="asking CometAPI")
            with _listening(listen), waits_shown(move):
                yield loaded
            move(description=done, total=1.0, completed=1.0)
    except KeyboardInterrupt:
        errors.print(
            "[yellow]Interrupted.[/] A submitted generation continues at CometAPI and is charged "
            "if it succeeds.",
            soft_wrap=True,
        )
        if task_id:
            errors.print(f"  [dim]Next:[/] prefect-cometapi finish {escape(task_id)}")
        raise


@contextmanager
def waits_shown(move: Callable[..., None]) -> Iterator[None]:
    """Show beside a bar what a run within the block waits for.

    Args:
        move: Function that updates the bar.
    """
    from ..flows.runtime.log import wait_listener

    token = wait_listener.set(lambda reason: move(description=escape(reason)))
    try:
        yield
    finally:
        wait_listener.reset(token)


@contextmanager
def _listening(listen: Callable[[Submission, Generation], None]) -> Iterator[None]:
    from ..flows.ui.artifacts import progress_listener

    token = progress_listener.set(listen)
    try:
        yield
    finally:
        progress_listener.reset(token)


class Terminated(KeyboardInterrupt):
    """Interruption by SIGTERM or SIGHUP, which end a command like Ctrl-C.

    Attributes:
        status: Exit status as a shell reports it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the block, which the main thread has to enter.

    By default, these signals end a process at once: the Prefect server that it started would run
    forever, and no message would name the generation that continues upstream. A shell starts a
    background command with SIGINT ignored, so SIGTERM is the only way to stop it there.
    """

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated(number)

    handled = [signal.SIGTERM]
    # Windows has no SIGHUP. Under nohup it is ignored, and a handler would undo that.
    if (hangup := getattr(signal, "SIGHUP", None)) and signal.getsignal(hangup) != signal.SIG_IGN:
        handled.append(hangup)
    before = [(number, signal.signal(number, interrupt)) for number in handled]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class Stopwatch:
    """Stopwatch that starts when it is created."""

    def __init__(self) -> None:
        self._started = monotonic()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return monotonic() - self._started


def show_results(results: list[tuple[GenerationResult, float]]) -> None:
    """Print a table of the stored videos, each with the seconds that its flow took."""
    from ..flows.ui.formatting import shown_size

    for result, _seconds in results:
        if not result.videos:
            console.print(
                f"\nGeneration {escape(result.task_id)} is {result.status} "
                f"(idempotency key {escape(result.idempotency_key)}).",
                soft_wrap=True,
            )
            console.print("  [dim]Next:[/] prefect-cometapi collect")
    if not any(result.videos for result, _seconds in results):
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for name in ("file", "length", "size", "took", "polls"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for result, seconds in results:
        for video in result.videos:
            table.add_row(
                escape(display_path(video.uri)),
                "" if video.is_picture else f"{video.duration:.1f} s",
                shown_size(video.size),
                f"{seconds:.0f} s",
                str(result.polls),
            )
    console.print()
    console.print(table)


def show_collected(result: "CollectResult") -> None:
    """Print the generations that the collector found, with their states."""
    if not result.generations:
        console.print("Nothing to collect: every bought generation is stored or has an active run.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for name in ("idempotency key", "state", "videos or note"):
        table.add_column(name, overflow="fold")
    for item in result.generations:
        details = ", ".join(display_path(uri) for uri in item.uris) or item.note
        table.add_row(escape(item.idempotency_key), item.state, escape(details))
    console.print()
    console.print(table)


def display_path(uri: str) -> str:
    """Return a path below the working directory as a relative path, and any other URI unchanged."""
    path = Path(uri)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else uri


def show_error(error: Exception) -> None:
    """Print an expected failure without a stack trace.

    Lines are not wrapped, so that the user can copy a command or an address from them.
    """
    if isinstance(error, ValidationError):
        request = "[red]The request is not valid.[/] Nothing was sent or charged."
        errors.print(_NOT_VALID.get(error.title, request))
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            field = ".".join(str(part) for part in problem["loc"])
            if error.title == CometAPISettings.__name__:
                field = variable_of(problem["loc"])
            message = problem_of(problem["msg"])
            line = f"{field}: {message}" if field else message
            errors.print(f"  {escape(line)}", soft_wrap=True)
    elif isinstance(error, CometAPIError):
        first, *rest = str(error).splitlines()
        errors.print(f"[red]{type(error).__name__}[/]: {escape(first)}", soft_wrap=True)
        for line in rest:
            name, _, text = line.partition(": ")
            errors.print(f"  [dim]{escape(name)}:[/] {escape(text)}", soft_wrap=True)
    else:
        errors.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True)


def note_temporary_server(effect: str) -> None:
    """Print a note if no Prefect server is configured, and what that means for a command.

    Args:
        effect: Effect as a sentence.
    """
    if uses_temporary_server():
        errors.print(
            f"[yellow]Note:[/] PREFECT_API_URL is not set, so a temporary Prefect server is "
            f"started. {effect}",
            soft_wrap=True,
        )
        errors.print(
            "  [dim]For a lasting one:[/] prefect server start, and in another terminal: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api",
            soft_wrap=True,
        )


def stop_at_prefect(message: str, next_step: str) -> NoReturn:
    """Print an error of Prefect without a stack trace, and exit with 1."""
    first, *_more = message.splitlines()
    errors.print(f"[red]Prefect[/]: {escape(first)}", soft_wrap=True)
    errors.print(f"  [dim]Next:[/] {escape(next_step)}", soft_wrap=True)
    sys.exit(1)
