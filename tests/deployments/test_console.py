# SPDX-License-Identifier: Apache-2.0
"""Untrusted text neither moves the terminal's cursor, nor links, nor changes a command."""

import asyncio
import os
from contextlib import suppress
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from prefect_cometapi.deployments import console
from prefect_cometapi.deployments.console import display_path
from prefect_cometapi.flows.runtime.log import show_waiting
from prefect_cometapi.runway import GenerationResult, InvalidManifest, State, StoredVideo
from prefect_cometapi.runway.batch.rows import BadRow
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.store import get_ledger

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

IDS = ["[/b]", "[link=https://evil.example]fix it[/link]", "[red]x", "a\\[b]", ":100:", "]["]
CLEARS = "\x1b[2J\x9b2J\a"


def test_what_reads_as_markup_is_shown_as_it_is(monkeypatch):
    """Text that looks like markup, such as a manifest's ids, is printed unchanged."""
    shown = StringIO()
    monkeypatch.setattr(console, "errors", Console(file=shown, emoji=False))
    rows = [BadRow(row=n, id=id_, problem=f"is bad {n}") for n, id_ in enumerate(IDS[:5], 1)]
    console.show_error(InvalidManifest("no row is valid", rows=rows))
    for id_ in IDS[:5]:
        assert f"(id {id_}): is bad" in shown.getvalue()


@pytest.mark.parametrize("id_", IDS)
def test_text_that_is_escaped_is_shown_as_it_is(id_):
    """Escaped text is printed unchanged, whatever is beside it."""
    shown = StringIO()
    terminal = Console(file=shown, force_terminal=True, color_system=None, emoji=False, width=200)
    terminal.print(f"[dim]{console.escape(id_)}:[/] {console.escape(id_)}")
    assert shown.getvalue() == f"{id_}: {id_}\n"


def record(key: str, **values: Any) -> None:
    """Write an untrusted entry to the ledger of the settings."""
    ledger = get_ledger(os.environ["COMETAPI_LEDGER_URL"])
    intent = Intent(idempotency_key=key, base_url="https://api.cometapi.com", model=f"m{CLEARS}")
    assert asyncio.run(ledger._insert(intent, State.UNCERTAIN, "claim", **values))


@pytest.mark.parametrize("how", [["list"], ["list", "--csv"], ["show", f"k{CLEARS}"]])
def test_what_stands_in_the_ledger_does_not_move_the_terminal(command, capsys, how):
    """Control characters in a ledger neither clear the screen nor overwrite other output."""
    record(f"k{CLEARS}", note=f"note{CLEARS}", failure_code=CLEARS)
    assert command("ledger", *how) == 0
    told = capsys.readouterr().out
    assert "uncertain" in told
    assert not set(CLEARS) - set("[2J") & set(told)


def test_a_key_stands_in_a_command_as_it_is(command, capsys):
    """A key in a command is printed unchanged, without emoji for words between colons."""
    record("order:100:video")
    assert command("ledger", "list") == 0
    assert "prefect-cometapi ledger adopt order:100:video TASK_ID" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "mark", "text"),
    [(None, "✓", "stored"), (ValueError, "✗", "failed"), (KeyboardInterrupt, "✗", "interrupted")],
)
def test_a_bar_ends_with_a_mark(error, mark, text):
    """A tick or a cross stays in the terminal, also if the bar never had an end."""
    shown = StringIO()
    terminal = Console(file=shown, force_terminal=True, color_system=None, width=100)
    with suppress(ValueError, KeyboardInterrupt), console.bar("batch", terminal) as move:
        if error:
            raise error
        move(description="stored", total=1.0, completed=1.0)
    last = shown.getvalue().rsplit("\r", 1)[-1]
    assert mark in last
    assert text in last


def test_a_bar_that_fails_is_not_printed_into_a_pipe():
    """Output that a program reads has no half of a bar."""
    shown = StringIO()
    with suppress(ValueError), console.bar("batch", Console(file=shown)):
        raise ValueError
    assert shown.getvalue().strip() == ""


def test_a_bar_shows_what_a_run_waits_for():
    """The reason of a wait replaces the description, and nothing of it is markup."""
    seen: list[str] = []
    show_waiting("nobody listens")

    def move(*, description: str) -> None:
        seen.append(description)

    with console.waits_shown(move):
        show_waiting("attempt 2 in 3 s: [red]away")
    show_waiting("nobody listens")
    assert seen == [console.escape("attempt 2 in 3 s: [red]away")]


def test_a_slow_video_has_one_row_in_a_terminal_of_80_columns(tmp_path, monkeypatch, capsys):
    """A run of several minutes does not widen the table, so the path can be copied."""
    monkeypatch.setattr(console.console, "width", 80)
    video = StoredVideo.model_construct(
        uri=str(tmp_path / "videos" / "20261128-235646-run-b30a94be-o7p3tybh5h.mp4"),
        duration=5.0,
        size=900_000,
    )
    result = GenerationResult.model_construct(videos=(video,), polls=114)
    console.show_results([(result, 604.5)])
    _, row = capsys.readouterr().out.strip().splitlines()
    assert row.split() == [display_path(video.uri), "5.0", "s", "0.9", "MB", "604", "s", "114"]
