# SPDX-License-Identifier: Apache-2.0
"""The command line, as it is typed: what it prints, what it buys, and how it fails."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import pytest
from prefect_cometapi.deployments import cli, terminal
from prefect_cometapi.deployments.sources import as_source
from prefect_cometapi.deployments.terminal import shown_place
from prefect_cometapi.runway import (
    CometAPISettings,
    GenerationFailed,
    InvalidRequest,
    VideoToVideoRequest,
)
from prefect_cometapi.sandbox import Sandbox, SandboxConfig
from pydantic import ValidationError

SCRIPT = Path(sys.executable).parent / "prefect-cometapi"
KEY = "sk-canary0f7b1d3c5e9a"

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

COMMANDS = ["demo", "finish", "image-to-video", "sandbox", "video-to-video"]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def picture() -> str:
    """An image file in the working directory."""
    Path("cat.png").write_bytes(PIXEL)
    return "cat.png"


def typed(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the console script as a shell would."""
    return subprocess.run(
        [SCRIPT, *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass
class Shell:
    """Runs commands with the test's Prefect server and sandbox."""

    prefect: str
    sandbox: Sandbox

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return typed(*words, **{**self.env, **env})

    @property
    def env(self) -> dict[str, str]:
        """Prefect's side of the environment, with a home that no other test has."""
        return {"PREFECT_API_URL": self.prefect, "PREFECT_HOME": str(Path("prefect").absolute())}


@pytest.fixture
def shell(prefect_server, sandbox) -> Shell:
    return Shell(prefect_server, sandbox)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """What an expected failure tells on stderr, when it fails the way all of them do."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert KEY not in done.stderr + done.stdout
    return done.stderr


# The script as it is installed.


@pytest.mark.server
def test_a_local_image_becomes_a_video_and_a_table(shell, picture):
    """One command turns an image file into a stored video, and says where it is."""
    done = shell("image-to-video", picture, "slow zoom", "--duration", "5", "--ratio", "1280:720")
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.strip().splitlines()[-2:]
    assert header.split() == ["file", "length", "size", "took", "polls"]
    file, length = row.split()[:2]
    assert file.startswith("videos/")
    with av.open(file, "r") as video:
        assert float(video.duration or 0) / av.time_base == pytest.approx(float(length), abs=0.1)
    (job,) = shell.sandbox.accepted
    assert job.body["promptText"] == "slow zoom"
    assert job.body["duration"] == 5
    assert job.body["ratio"] == "1280:720"
    sent = base64.b64decode(job.body["promptImage"].removeprefix("data:image/png;base64,"))
    assert sent == PIXEL
    assert done.stderr == ""


@pytest.mark.server
def test_json_output_can_be_piped_into_another_program(shell, picture):
    """With --json, stdout is one JSON document and nothing else; progress goes to stderr."""
    done = shell("image-to-video", picture, "--json", "--seed", "7")
    result = json.loads(done.stdout)
    assert result["status"] == "succeeded"
    assert Path(result["videos"][0]["uri"]).stat().st_size == result["videos"][0]["size"]
    assert [job.task_id for job in shell.sandbox.accepted] == [result["task_id"]]
    assert shell.sandbox.accepted[0].body["seed"] == 7
    assert "image_to_video" in done.stderr


@pytest.mark.server
def test_a_local_video_is_restyled_and_a_bought_one_finished(shell, picture):
    """What one command made, the next restyles; and `finish` fetches it again, buying nothing."""
    first = json.loads(shell("image-to-video", picture, "--json").stdout)
    file = first["videos"][0]["uri"]
    second = shell(
        "video-to-video", file, "at dawn", "--reference", picture, "--storage", "restyled", "--json"
    )
    restyled = json.loads(second.stdout)
    assert Path(restyled["videos"][0]["uri"]).parent == Path.cwd() / "restyled"
    job = shell.sandbox.accepted[1]
    assert job.route == "video_to_video"
    assert base64.b64decode(job.body["videoUri"].partition(",")[2]) == Path(file).read_bytes()
    assert job.body["references"][0]["uri"].startswith("data:image/png;base64,")

    again = shell("finish", restyled["task_id"], "--storage", "again", "--json")
    finished = json.loads(again.stdout)
    assert finished["videos"][0]["sha256"] == restyled["videos"][0]["sha256"]
    assert Path(finished["videos"][0]["uri"]).parent == Path.cwd() / "again"
    assert len(shell.sandbox.accepted) == 2


@pytest.mark.server
def test_a_wrong_key_is_told_without_showing_it(shell, picture):
    """A key that CometAPI refuses costs nothing, and the message says where to get a right one."""
    told = refused(shell("image-to-video", picture, COMETAPI_KEY="wrong-key"))
    assert told.startswith("AuthenticationError: ")
    assert "wrong-key" not in told
    assert "\n  Money: nothing was charged" in told
    assert "\n  Next: set COMETAPI_KEY" in told
    assert shell.sandbox.accepted == []


@pytest.mark.server
def test_a_lost_answer_is_told_with_the_money_and_the_next_command(shell, picture):
    """When nobody knows whether it was bought, the user learns how to find out."""
    shell.sandbox.add_fault("create:reset-after")
    told = refused(shell("image-to-video", picture, "--key", "sku-17"))
    assert told.startswith("SubmissionUncertain: ")
    assert "\n  Generation: key sku-17.\n" in told
    assert "\n  Money: perhaps charged, once. It is never sent again by itself.\n" in told
    assert "prefect-cometapi finish TASK_ID" in told
    assert len(shell.sandbox.accepted) == 1


@pytest.mark.server
def test_an_interrupted_command_says_how_to_go_on(shell, picture):
    """Ctrl-C names the generation that goes on upstream, with the command that finishes it."""
    with Sandbox(render_seconds=600) as slow:
        process = subprocess.Popen(
            [SCRIPT, "image-to-video", picture],
            env={**os.environ, **shell.env, "COMETAPI_BASE_URL": slow.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_second_poll(slow)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        (job,) = slow.accepted
    assert process.returncode == 130
    assert told == (
        "Interrupted. A submitted generation goes on upstream.\n"
        f"  Next: prefect-cometapi finish {job.task_id}\n"
    )


def wait_for_second_poll(sandbox: Sandbox) -> None:
    """Until the answer to the first poll was read, of which the next request is the sign."""
    for _ in range(600):
        if sum(request.route == "task" for request in sandbox.requests) >= 2:
            return
        signal.sigtimedwait([], 0.1)
    raise TimeoutError("the command does not poll")


@pytest.mark.server
def test_an_address_without_a_prefect_server_is_told(shell, picture):
    """A Prefect server that is not there is named, with what to do, and nothing is bought."""
    told = refused(
        shell("image-to-video", picture, PREFECT_API_URL=f"http://127.0.0.1:{closed_port()}/api")
    )
    assert told.startswith("Prefect: Failed to reach API at http://127.0.0.1:")
    assert "Next: prefect server start, or unset PREFECT_API_URL" in told
    assert shell.sandbox.accepted == []


def test_help_lists_the_commands():
    """The help is the list of what one can do, and comes without Prefect being loaded."""
    done = typed("--help")
    assert done.returncode == 0
    commands = re.findall(r"^│ ([a-z][a-z-]+) ", done.stdout, re.MULTILINE)
    assert commands == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    """No option in a command's help stands there without a word on it."""
    arguments = cli.app[name].assemble_argument_collection()
    assert [argument.name for argument in arguments if not argument.parameter.help] == []


@dataclass
class Running:
    """A sandbox in a process of its own, its address, and what it printed."""

    process: subprocess.Popen[str]
    url: str
    told: str


@pytest.fixture
def running() -> Iterator[Running]:
    """`prefect-cometapi sandbox --port 0` as a process."""
    process = subprocess.Popen(
        [SCRIPT, "sandbox", "--port", "0", "--fault", "create:429:value=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    told = "".join(iter(process.stdout.readline, "Ctrl-C stops it.\n"))
    address = re.search(r"http://127\.0\.0\.1:\d+", told)
    assert address
    yield Running(process, address[0], told)
    process.kill()
    process.communicate()


def test_the_sandbox_answers_at_the_address_that_it_prints(running):
    """The sandbox command serves its documentation and misbehaves as it was told to."""
    assert httpx.get(f"{running.url}/docs").status_code == 200
    body = {"promptImage": "https://example.com/a.jpg", "model": "gen3a_turbo"}
    headers = {"Authorization": "Bearer sandbox", "X-Runway-Version": "2024-11-06"}
    answers = [
        httpx.post(f"{running.url}/runwayml/v1/image_to_video", json=body, headers=headers)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [429, 200]


def test_the_sandbox_ends_quietly_with_ctrl_c(running):
    """Ctrl-C ends the sandbox at once, without an error, and it told how to use it before."""
    assert f"export COMETAPI_BASE_URL={running.url} COMETAPI_KEY=sandbox" in running.told
    assert "prefect-cometapi image-to-video" in running.told
    running.process.send_signal(signal.SIGINT)
    assert running.process.communicate(timeout=10) == ("", "")
    assert running.process.returncode == 0


# The same entry point in this process, where most of its cases need no second interpreter.


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command that runs in this process."""
    monkeypatch.setattr(sys, "argv", ["prefect-cometapi", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """The commands set variables of the process; the next test does not see them."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.server
def test_both_kinds_of_generation_and_finish_print_a_table(shell, picture, monkeypatch, capsys):
    """Each command ends with a row per video."""
    assert command(monkeypatch, "image-to-video", picture, "--storage", "first") == 0
    (file,) = Path("first").glob("*.mp4")
    assert f"first/{file.name}" in capsys.readouterr().out
    assert command(monkeypatch, "video-to-video", str(file), "at dawn", "--storage", "second") == 0
    (file,) = Path("second").glob("*.mp4")
    assert f"second/{file.name}" in capsys.readouterr().out
    bought = shell.sandbox.accepted[1].task_id
    assert command(monkeypatch, "finish", bought, "--json") == 0
    assert json.loads(capsys.readouterr().out)["task_id"] == bought
    assert len(shell.sandbox.accepted) == 2


@pytest.mark.server
def test_a_model_that_comet_does_not_know_is_its_word_not_ours(shell, picture, monkeypatch, capsys):
    """An unknown model is passed on, and CometAPI's refusal is repeated in its own words."""
    assert command(monkeypatch, "image-to-video", picture, "--model", "gen9_dream") == 1
    told = capsys.readouterr().err
    assert told.startswith("InvalidRequest: ")
    assert "No available channel for model gen9_dream" in told
    assert "Money: nothing was charged." in told
    assert shell.sandbox.accepted == []


@pytest.mark.server
def test_without_a_key_nothing_is_sent(shell, picture, monkeypatch, capsys):
    """Who set no key learns which variable to set."""
    monkeypatch.delenv("COMETAPI_KEY")
    assert command(monkeypatch, "image-to-video", picture) == 1
    told = capsys.readouterr().err
    assert told.startswith("AuthenticationError: there is no API key\n")
    assert "Next: set COMETAPI_KEY" in told
    assert shell.sandbox.requests == []


@pytest.mark.server
def test_a_bad_setting_is_told_by_the_name_of_its_variable(shell, picture, monkeypatch, capsys):
    """A mistake in the environment is called by the name that the user wrote there."""
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "-1")
    assert command(monkeypatch, "image-to-video", picture) == 1
    assert capsys.readouterr().err == (
        "The settings are not valid; nothing was sent.\n"
        "  COMETAPI_POLL_INTERVAL: Input should be greater than 0\n"
    )
    assert shell.sandbox.requests == []


def test_a_duration_that_the_model_does_not_make_is_refused(sandbox, picture, monkeypatch, capsys):
    """A wrong value is told with the allowed ones, before anything is sent or Prefect starts."""
    assert command(monkeypatch, "image-to-video", picture, "--duration", "7") == 1
    assert capsys.readouterr().err == (
        "The request is not valid; nothing was sent.\n"
        "  duration: 5 or 10 seconds, got 7 (model gen3a_turbo)\n"
    )
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["finish", " "], 'Invalid value " " for TASK-ID. it is empty'),
        (["image-to-video", "x", "--key", ""], "a key has 1 to 512 printable characters"),
        (["sandbox", "--port", "65536"], "Must be <= 65535."),
        (["sandbox", "--port", "-1"], "Must be >= 0."),
        (["sandbox", "--shape", "round"], 'Choose from: "bare", "wrapped"'),
        (["video-to-video", "x"], 'Command "video-to-video" parameter --prompt requires'),
        (["imagine"], 'Unknown command "imagine"'),
    ],
)
def test_a_mistyped_command_is_explained(words, reason, monkeypatch, capsys):
    """What cannot be a command is refused in a sentence, without a stack trace."""
    assert command(monkeypatch, *words) in {1, 2}
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
def test_a_sandbox_that_cannot_be_is_explained(words, reason, monkeypatch, capsys):
    """A fault or a number that makes no sense is told with what was expected."""
    assert command(monkeypatch, "sandbox", "--port", "0", *words) == 1
    assert reason in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(monkeypatch, capsys):
    """Two sandboxes on one port: the second says which port, and how to get a free one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command(monkeypatch, "sandbox", "--port", str(port)) == 1
    assert capsys.readouterr().err == (
        f"OSError: port {port}: Address already in use; --port 0 takes a free one\n"
    )


def test_the_sandbox_command_runs_until_it_is_interrupted(monkeypatch, capsys):
    """The command serves for as long as it waits, and an interrupt is its normal end."""
    answered = []

    class Interrupted:
        def wait(self) -> None:
            url = re.search(r"http://127\.0\.0\.1:\d+", capsys.readouterr().out)
            answered.append(httpx.get(f"{url and url[0]}/docs").status_code)
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "Event", Interrupted)
    assert command(monkeypatch, "sandbox", "--port", "0") == 0
    assert answered == [200]


def test_the_demo_command_passes_its_storage_on(monkeypatch):
    """`demo --storage` keeps the clips where the user says."""
    asked = []
    monkeypatch.setattr("prefect_cometapi.deployments.demo.run_demo", asked.append)
    assert command(monkeypatch, "demo", "--storage", "here") == 0
    assert command(monkeypatch, "demo") == 0
    assert asked == ["here", None]


def test_an_interrupt_before_anything_was_bought_is_quiet(monkeypatch, capsys):
    """Ctrl-C while the program still starts ends it with the code that shells expect."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert command(monkeypatch) == 130
    assert capsys.readouterr().err == ""


def test_an_unexpected_error_keeps_its_stack_trace(monkeypatch):
    """A bug is not dressed up as a mistake of the user."""

    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        command(monkeypatch)


# Its parts.


def test_an_interrupt_while_nothing_is_known_still_warns(capsys):
    """Ctrl-C between the submission and its first poll does not pretend that nothing happened."""
    with pytest.raises(KeyboardInterrupt), terminal.progress_of("image_to_video"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "Interrupted. A submitted generation goes on upstream.\n"


@pytest.mark.parametrize(
    "place",
    ["https://example.com/a.jpg", "s3://bucket/a.jpg", "data:image/png;base64,AA==", "DATA:x,y"],
)
def test_an_address_is_sent_as_it_is(place):
    """A URL or a data URI is not looked for among the files."""
    assert as_source(place) == place


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.png", "image/png"),
        ("a b.JPG", "image/jpeg"),
        ("clip.mp4", "video/mp4"),
        ("noname", "application/octet-stream"),
    ],
)
def test_a_file_is_sent_with_its_media_type(name, media_type):
    """A file travels inside the request, typed by its name."""
    Path(name).write_bytes(b"\x00\x01")
    assert as_source(name) == f"data:{media_type};base64,AAE="


def test_a_path_below_the_home_folder_is_found(monkeypatch, tmp_path):
    """A tilde that the shell left alone is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(tmp_path / "a.png").write_bytes(b"x")
    assert as_source("~/a.png") == "data:image/png;base64,eA=="


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("missing.jpg", "No such file or directory"),
        ("example.com/cat.jpg", "No such file or directory"),
        (".", "Is a directory"),
        ("~nobody-of-this-name/a.jpg", "Could not determine home directory"),
        ("a" * 5000, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_what_is_neither_address_nor_file_is_told(place, reason):
    """A typing error in a path is told as one, and not as a bad URL."""
    with pytest.raises(InvalidRequest, match="neither a https:// URL nor a file") as caught:
        as_source(place)
    assert reason in str(caught.value)


def test_a_place_is_shown_from_here_where_it_is_below_here(tmp_path):
    """A path can be copied into the next command, wherever the file is."""
    assert shown_place(str(tmp_path / "videos" / "a.mp4")) == "videos/a.mp4"
    assert shown_place("/elsewhere/a.mp4") == "/elsewhere/a.mp4"
    assert shown_place("s3://bucket/a.mp4") == "s3://bucket/a.mp4"


def test_a_failure_is_shown_line_by_line_and_never_wrapped(capsys):
    """Addresses and commands in a message can be copied, however narrow the terminal."""
    error = GenerationFailed("it failed [bold]" + "x" * 300, code="INTERNAL.BAD_OUTPUT")
    terminal.show_error(error.about(key="k" * 100, task_id="t" * 36))
    first, second, money, advice = capsys.readouterr().err.splitlines()
    assert first == f"GenerationFailed: it failed [bold]{'x' * 300} (INTERNAL.BAD_OUTPUT)"
    assert second == f"  Generation: key {'k' * 100}, task id {'t' * 36}."
    assert money.startswith("  Money: accepted, then failed")
    assert advice.startswith("  Next: change the image or the prompt")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: VideoToVideoRequest.model_validate({"videoUri": "https://e.com/a.mp4"}),
            ["The request is not valid; nothing was sent.", "  promptText: Field required"],
        ),
        (
            lambda: CometAPISettings(deadline=0),
            [
                "The settings are not valid; nothing was sent.",
                "  COMETAPI_DEADLINE: Input should be greater than 0",
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
def test_a_validation_error_is_told_field_by_field(make, told, capsys):
    """What is wrong, by the name that the user knows, and nothing of pydantic's own."""
    with pytest.raises(ValidationError) as caught:
        make()
    terminal.show_error(caught.value)
    assert capsys.readouterr().err.splitlines() == told


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]
