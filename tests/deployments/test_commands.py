# SPDX-License-Identifier: Apache-2.0
"""Cases of each command, and the functions that the commands share."""

import json
import re
import socket
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from prefect_cometapi.deployments import cli, console
from prefect_cometapi.deployments.console import display_path
from prefect_cometapi.deployments.source_arguments import as_source
from prefect_cometapi.runway import (
    CometAPISettings,
    GenerationFailed,
    SourceUnavailable,
    VideoToVideoRequest,
)
from prefect_cometapi.sandbox import SandboxConfig

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.mark.parametrize(
    "name", ["batch", "collect", "demo", "finish", "image-to-video", "sandbox", "video-to-video"]
)
def test_every_option_is_explained(name):
    """Every option of every command has a help text."""
    arguments = cli.app[name].assemble_argument_collection()
    assert [argument.name for argument in arguments if not argument.parameter.help] == []


@pytest.mark.server
@pytest.mark.heavy
def test_both_kinds_of_generation_and_finish_print_a_table(shell, picture, capsys, command):
    """Each command ends with a table of one row per video."""
    assert command("image-to-video", picture, "--storage", "first") == 0
    (file,) = Path("first").glob("*.mp4")
    assert f"first/{file.name}" in capsys.readouterr().out
    assert command("video-to-video", str(file), "at dawn", "--storage", "second") == 0
    (file,) = Path("second").glob("*.mp4")
    assert f"second/{file.name}" in capsys.readouterr().out
    bought = shell.sandbox.accepted[1].task_id
    assert command("finish", bought, "--json") == 0
    assert json.loads(capsys.readouterr().out)["task_id"] == bought
    assert len(shell.sandbox.accepted) == 2


@pytest.mark.server
def test_a_model_that_comet_does_not_know_is_its_word_not_ours(shell, picture, capsys, command):
    """An unknown model is sent to CometAPI, and its refusal is printed word for word."""
    assert command("image-to-video", picture, "--model", "gen9_dream") == 1
    told = capsys.readouterr().err
    assert told.startswith("InvalidRequest: ")
    assert "No available channel for model gen9_dream" in told
    assert "Money: nothing was charged." in told
    assert shell.sandbox.accepted == []


@pytest.mark.server
def test_without_a_key_nothing_is_sent(shell, picture, monkeypatch, capsys, command):
    """A command without an API key names the variable to set."""
    monkeypatch.delenv("COMETAPI_KEY")
    assert command("image-to-video", picture) == 1
    told = capsys.readouterr().err
    assert told.startswith("AuthenticationError: there is no API key\n")
    assert "Next: set COMETAPI_KEY" in told
    assert shell.sandbox.requests == []


@pytest.mark.server
def test_an_invalid_setting_is_reported_by_its_variable(
    shell, picture, monkeypatch, capsys, command
):
    """An invalid setting is reported by the name of its environment variable."""
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "-1")
    assert command("image-to-video", picture) == 1
    assert capsys.readouterr().err == (
        "InvalidEnvironment: COMETAPI_POLL_INTERVAL: Input should be greater than 0\n"
        "  Money: nothing was charged for this call.\n"
        "  Next: correct what the message names, and run it again.\n"
    )
    assert shell.sandbox.requests == []


def test_a_duration_that_the_model_does_not_make_is_refused(sandbox, picture, capsys, command):
    """A wrong duration is refused with the allowed ones before Prefect starts."""
    assert command("image-to-video", picture, "--duration", "7") == 1
    assert capsys.readouterr().err == (
        "The request is not valid. Nothing was sent or charged.\n"
        "  duration: 5 or 10 seconds, got 7 (model gen3a_turbo)\n"
    )
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["finish", " "], 'Invalid value " " for TASK-ID. a task id must have 1 to 200'),
        (["image-to-video", "x", "--idempotency-key", ""], "must have 1 to 512 printable"),
        (["sandbox", "--port", "65536"], "Must be <= 65535."),
        (["sandbox", "--port", "-1"], "Must be >= 0."),
        (["sandbox", "--shape", "round"], 'Choose from: "bare", "wrapped"'),
        (["text-to-image"], 'Command "text-to-image" parameter --prompt requires'),
        (["imagine"], 'Unknown command "imagine"'),
    ],
)
def test_a_mistyped_command_is_explained(words, reason, capsys, command):
    """A mistyped command is refused in a sentence, without a stack trace."""
    assert command(*words) in {1, 2}
    told = re.sub(r"[│\s]+", " ", capsys.readouterr().err)
    assert reason in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--fault", "create:418"], "ValueError: Fault 'create:418': kind Input should be '429'"),
        (["--fault", "create:418"], "Expected ROUTE:KIND or ROUTE:KIND:times=N"),
        (
            ["--render-seconds=-1"],
            "The options are not valid.\n  render_seconds: Input should be greater",
        ),
    ],
)
def test_a_sandbox_that_cannot_be_is_explained(words, reason, capsys, command):
    """An invalid fault or number is refused with the expected form."""
    assert command("sandbox", "--port", "0", *words) == 1
    assert reason in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys, command):
    """A second sandbox on a port names the port, and how to get a free one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("sandbox", "--port", str(port)) == 1
    assert capsys.readouterr().err == (
        f"OSError: port {port}: Address already in use; --port 0 selects a free one\n"
    )


def test_the_sandbox_command_runs_until_it_is_interrupted(monkeypatch, capsys, command):
    """The sandbox command runs until an interrupt, which is its normal end."""
    answered = []

    class Interrupted:
        def wait(self) -> None:
            url = re.search(r"http://127\.0\.0\.1:\d+", capsys.readouterr().out)
            answered.append(httpx.get(f"{url and url[0]}/openapi.json").status_code)
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "Event", Interrupted)
    assert command("sandbox", "--port", "0") == 0
    assert answered == [200]


def test_the_demo_command_passes_its_storage_on(monkeypatch, command):
    """`demo --storage` keeps the clips in the given storage."""
    asked = []
    monkeypatch.setattr("prefect_cometapi.deployments.commands.demo.run_demo", asked.append)
    assert command("demo", "--storage", "here") == 0
    assert command("demo") == 0
    assert asked == ["here", None]


def test_an_interrupt_before_anything_was_bought_is_quiet(monkeypatch, capsys, command):
    """Ctrl-C before anything was bought ends the program with the usual exit code of shells."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert command() == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        "Failed to reach API at http://127.0.0.1:9/api/",
        "Timed out while attempting to connect to ephemeral Prefect API server.",
        "The temporary server has ended with status 3",
    ],
)
def test_an_unreachable_prefect_is_reported_in_its_own_words(words, monkeypatch, command, capsys):
    """An unreachable server or one that does not start is reported without a stack trace."""

    def away() -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(cli, "app", away)
    assert command() == 1
    assert capsys.readouterr().err == (
        f"Prefect: {words}\n  Next: prefect server start, or unset PREFECT_API_URL\n"
    )


def test_an_unexpected_error_keeps_its_stack_trace(monkeypatch, command):
    """An unexpected error keeps its stack trace."""

    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        command()


# Functions that the commands share.


def test_an_interrupt_while_nothing_is_known_still_warns(monkeypatch, capsys):
    """Ctrl-C between the submission and its first poll still warns of a possible purchase."""
    monkeypatch.setattr(console, "connect", lambda load, _say: load())
    with pytest.raises(KeyboardInterrupt), console.progress_of("image_to_video", int):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == (
        "Interrupted. A submitted generation continues at CometAPI and is charged if it succeeds.\n"
    )


@pytest.mark.parametrize(
    "place",
    [
        "https://example.com/a.jpg",
        "s3://bucket/a.jpg",
        "s3-bucket/prod/a.jpg",
        "data:image/png;base64,AA==",
        "DATA:x,y",
    ],
)
def test_an_address_is_taken_as_it_is(place):
    """A URL, a data URI or a file in a block is not looked up on this machine."""
    assert as_source(place) == place


def test_a_readable_file_is_taken_as_its_path(monkeypatch, tmp_path):
    """A path stays a path, and a tilde that the shell did not expand is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.png").write_bytes(b"x")
    assert as_source("~/a b.png") == "~/a b.png"
    assert as_source(f"file://{tmp_path}/a%20b.png") == f"file://{tmp_path}/a%20b.png"


def test_a_file_that_looks_like_one_in_a_block_is_the_file():
    """A path as the shell completes it is a file if there is one."""
    Path("assets/in").mkdir(parents=True)
    Path("assets/in/a.png").write_bytes(b"x")
    assert as_source("assets/in/a.png") == "./assets/in/a.png"
    assert as_source("assets/in/b.png") == "assets/in/b.png"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("missing.jpg", "No such file or directory"),
        (".", "it is not a file"),
        ("~nobody-of-this-name/a.jpg", "No such file or directory"),
        ("a" * 5000, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_a_path_without_a_readable_file_is_refused_at_once(place, reason):
    """A mistyped path is reported before anything starts, with the machine and the money."""
    with pytest.raises(SourceUnavailable, match=r"cannot be read on .*, which submits") as caught:
        as_source(place)
    assert reason in str(caught.value)
    assert "Money: nothing was charged." in str(caught.value)


def test_a_place_is_shown_from_here_where_it_is_below_here(tmp_path):
    """A path below the working directory is shown relative, and any other location unchanged."""
    assert display_path(str(tmp_path / "videos" / "a.mp4")) == "videos/a.mp4"
    assert display_path("/elsewhere/a.mp4") == "/elsewhere/a.mp4"
    assert display_path("s3://bucket/a.mp4") == "s3://bucket/a.mp4"


def test_a_failure_is_shown_line_by_line_and_never_wrapped(capsys):
    """Lines of an error message are never wrapped, so addresses and commands can be copied."""
    error = GenerationFailed("it failed [bold]" + "x" * 300, code="INTERNAL.BAD_OUTPUT")
    console.show_error(error.with_context(idempotency_key="k" * 100, task_id="t" * 36))
    first, second, money, advice = capsys.readouterr().err.splitlines()
    assert first == f"GenerationFailed: it failed [bold]{'x' * 300} (INTERNAL.BAD_OUTPUT)"
    assert second == f"  Generation: idempotency key {'k' * 100}, task id {'t' * 36}."
    assert money.startswith("  Money: accepted, then failed")
    assert advice.startswith("  Next: change the image or the prompt")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: VideoToVideoRequest.model_validate({"videoUri": "https://e.com/a.mp4"}),
            [
                "The request is not valid. Nothing was sent or charged.",
                "  promptText: is missing (model gen4_aleph)",
            ],
        ),
        (
            lambda: CometAPISettings(generation_timeout=0),
            [
                "The settings are not valid. Nothing was sent or charged.",
                "  COMETAPI_GENERATION_TIMEOUT: Input should be greater than 0",
            ],
        ),
        (
            lambda: SandboxConfig(seed=0, not_visible_polls=-1),
            [
                "The options are not valid.",
                "  not_visible_polls: Input should be greater than or equal to 0",
            ],
        ),
    ],
)
def test_a_validation_error_is_reported_field_by_field(make, told, capsys):
    """A validation error names each field as the user knows it, without pydantic's own text."""
    with pytest.raises(ValidationError) as caught:
        make()
    console.show_error(caught.value)
    assert capsys.readouterr().err.splitlines() == told
