# SPDX-License-Identifier: Apache-2.0
"""Output never decides how a command ends: any encoding, a closed pipe, a full disk."""

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, cast

import pytest
from rich.console import Console
from rich.progress import Progress

from prefect_cometapi.deployments.output import Output
from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import Entry, Intent
from prefect_cometapi.runway.ledger.store import get_ledger

COMMAND = Path(sys.executable).parent / "prefect-cometapi"


def known(key: str) -> Entry:
    found = asyncio.run(get_ledger(os.environ["COMETAPI_LEDGER_URL"]).get(key))
    assert found
    return found


@pytest.fixture
def ledger_of_many() -> None:
    """Fill the ledger with more text than a pipe holds."""
    ledger = get_ledger(os.environ["COMETAPI_LEDGER_URL"])

    async def fill() -> None:
        for number in range(60):
            intent = Intent(
                idempotency_key=f"row-{number}",
                base_url="https://api.cometapi.com",
                route="image_to_video",
                model="gen3a_turbo",
                fingerprint="f" * 64,
                request={"promptImage": "https://example.com/" + "x" * 3000},
            )
            await ledger._insert(intent, State.SUBMITTED, f"claim-{number}", task_id=f"t-{number}")

    asyncio.run(fill())


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii", "cp437", "utf-8"])
def test_a_character_that_a_terminal_lacks_is_escaped(encoding, monkeypatch):
    """Each text is written in each encoding, and what can be shown is shown as it is."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    console = Console(file=cast("IO[str]", Output("stdout")), highlight=False, emoji=False)
    console.print("[green]✓[/] stored Grüße, 猫.mp4")
    written = raw.getvalue().decode(encoding)
    assert "stored Gr" in written
    assert written.rstrip().endswith(".mp4")
    assert written.startswith("✓" if encoding == "utf-8" else "ok")


def test_a_closed_pipe_drops_the_rest(monkeypatch):
    """After the reader has left, further output is dropped, and nothing fails at the end."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    output = Output("stdout")
    output.write("first\n")
    output.flush()
    os.close(reader)
    for _ in range(3):
        output.write("more\n" * 10_000)
        output.flush()
    stream.close()


def test_a_progress_bar_in_a_terminal_prints_once(monkeypatch):
    """Rich prints what other code writes meanwhile above the bar, once."""
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    console = Console(file=cast("IO[str]", Output("stdout")), force_terminal=True)
    with Progress(console=console) as progress:
        progress.add_task("storing", total=None)
        sys.stdout.write("from elsewhere\n")
        console.print("from the command")
    assert raw.getvalue().count("from elsewhere") == 1
    assert raw.getvalue().count("from the command") == 1


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_process_without_a_stream_may_print(stream, monkeypatch):
    """A stream that is missing or closed takes every text."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stream else None)
    output = Output("stderr")
    assert output.write("lost") == 4
    output.flush()
    assert not output.isatty()
    assert output.encoding == "utf-8"
    assert output.writable()
    with pytest.raises(ValueError):
        output.fileno()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.heavy
def test_a_command_ends_as_its_work_does_in_any_encoding(ledger_of_many, encoding):
    """A decision in the ledger is made and shown, whatever the terminal can show."""
    done = subprocess.run(
        [COMMAND, "ledger", "abandon", "row-0"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert known("row-0").state is State.ABANDONED
    assert b"row-0" in done.stdout


@pytest.mark.parametrize("words", [["--json"], ["--csv"], []])
@pytest.mark.heavy
def test_a_list_may_be_cut_by_its_reader(ledger_of_many, words):
    """`ledger list | head -1` succeeds without a message."""
    with subprocess.Popen(
        [COMMAND, "ledger", "list", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.heavy
def test_a_full_disk_under_the_output_leaves_the_exit_status(ledger_of_many):
    """A list that cannot be written to a full disk ends with exit status 0 and no stack trace."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, "ledger", "list", "--json"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("words", "stream", "status"),
    [(["image-to-video", "--help"], "stdout", 0), (["ledger", "list", "--nope"], "stderr", 2)],
)
def test_a_full_disk_under_a_help_or_a_usage_error_leaves_the_exit_status(words, stream, status):
    """The parser of the command line fails no command by what it prints."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Path("/dev/full").open("w") as full:
        streams[stream] = full
        done = subprocess.run([COMMAND, *words], check=False, **streams)
    assert done.returncode == status
    assert b"Traceback" not in (done.stderr or b"")


def test_a_closed_stream_is_opened_for_the_processes_that_a_command_starts():
    """A child process has standard streams, also if the command was started without them."""
    code = (
        "import os, subprocess, sys\n"
        "from prefect_cometapi.deployments.output import fill_closed_streams\n"
        "fill_closed_streams()\n"
        "child = 'import os; [os.fstat(number) for number in range(3)]'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', child]).returncode)\n"
    )
    line = '"$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, code], check=False)
    assert done.returncode == 0
