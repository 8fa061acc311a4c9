# SPDX-License-Identifier: Apache-2.0
"""The console script: its output, its purchases, and its errors."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import pytest

from prefect_cometapi.sandbox import Sandbox


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error message of an expected failure, after checks that all failures share."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert os.environ["COMETAPI_KEY"] not in done.stderr + done.stdout
    return done.stderr


@pytest.mark.server
def test_a_local_image_becomes_a_video_and_a_table(shell, picture):
    """One command turns an image file into a stored video, and prints its location."""
    done = shell("image-to-video", picture, "slow zoom", "--duration", "5", "--ratio", "1280:720")
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.strip().splitlines()[-2:]
    assert header.split() == ["file", "length", "size", "took", "polls"]
    file, length = row.split()[:2]
    assert file.startswith("videos/")
    with av.open(str(file), "r") as video:
        assert float(video.duration or 0) / av.time_base == pytest.approx(float(length), abs=0.1)
    (job,) = shell.sandbox.accepted
    assert job.body["promptText"] == "slow zoom"
    assert job.body["duration"] == 5
    assert job.body["ratio"] == "1280:720"
    sent = base64.b64decode(job.body["promptImage"].removeprefix("data:image/png;base64,"))
    assert sent == Path(picture).read_bytes()
    assert done.stderr == ""


@pytest.mark.server
@pytest.mark.heavy
def test_json_output_can_be_piped_into_another_program(shell, picture):
    """With --json, stdout is one JSON document and nothing else, and progress goes to stderr."""
    done = shell("image-to-video", picture, "--json", "--seed", "7")
    result = json.loads(done.stdout)
    assert result["status"] == "succeeded"
    assert Path(result["videos"][0]["uri"]).stat().st_size == result["videos"][0]["size"]
    assert [job.task_id for job in shell.sandbox.accepted] == [result["task_id"]]
    assert shell.sandbox.accepted[0].body["seed"] == 7
    assert "image-to-video" in done.stderr


@pytest.mark.heavy
@pytest.mark.server
def test_a_local_video_is_restyled_and_a_bought_one_finished(shell, picture):
    """The next command restyles a stored video, and `finish` fetches it without a purchase."""
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


@pytest.mark.heavy
@pytest.mark.server
def test_a_wrong_api_key_is_reported_without_showing_it(shell, picture):
    """A refused API key costs nothing, and the message says where to get a valid one."""
    told = refused(shell("image-to-video", picture, COMETAPI_KEY="wrong-key"))
    assert told.startswith("AuthenticationError: ")
    assert "wrong-key" not in told
    assert "\n  Money: nothing was charged" in told
    assert "\n  Next: set COMETAPI_KEY" in told
    assert shell.sandbox.accepted == []


@pytest.mark.server
def test_a_lost_reply_is_reported_with_the_money_and_the_next_command(shell, picture):
    """After a lost reply, the message says that it may be charged and how to find out."""
    shell.sandbox.add_fault("create:reset-after")
    told = refused(shell("image-to-video", picture, "--idempotency-key", "sku-17"))
    assert told.startswith("SubmissionUncertain: ")
    assert "\n  Generation: idempotency key sku-17.\n" in told
    assert (
        "\n  Money: possibly charged, once. The submission is never repeated automatically.\n"
        in told
    )
    assert "prefect-cometapi ledger adopt sku-17 TASK_ID" in told
    assert "prefect-cometapi ledger resubmit sku-17" in told
    assert len(shell.sandbox.accepted) == 1


@pytest.mark.server
@pytest.mark.heavy
def test_an_interrupted_command_says_how_to_go_on(shell, picture, script):
    """Ctrl-C during the wait prints the generation and the command that finishes it."""
    with Sandbox(render_seconds=600) as slow:
        terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}
        process = subprocess.Popen(
            [script, "image-to-video", picture],
            env={**os.environ, **shell.env, **terminal, "COMETAPI_BASE_URL": slow.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        shown = ""
        while not shown.endswith("queued"):
            letter = process.stdout.read(1)
            assert letter, shown
            shown += letter
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        (job,) = slow.accepted
    assert process.returncode == 130
    assert job.task_id[:8] in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", told) == (
        "Interrupted. A submitted generation continues at CometAPI and is charged if it succeeds.\n"
        f"  Next: prefect-cometapi finish {job.task_id}\n"
    )


@pytest.mark.heavy
@pytest.mark.server
def test_an_address_without_a_prefect_server_is_reported(shell, picture):
    """An unreachable Prefect server is named with the fix, and nothing is bought."""
    told = refused(
        shell("image-to-video", picture, PREFECT_API_URL=f"http://127.0.0.1:{closed_port()}/api")
    )
    assert told.startswith("Prefect: Failed to reach API at http://127.0.0.1:")
    assert "Next: prefect server start, or unset PREFECT_API_URL" in told
    assert shell.sandbox.accepted == []


def test_help_lists_the_commands(script):
    """The help lists all commands."""
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^│ ([a-z][a-z-]+) ", shown, re.MULTILINE)
    assert commands == [
        "batch",
        "character-performance",
        "collect",
        "demo",
        "deploy",
        "doctor",
        "finish",
        "image-to-video",
        "ledger",
        "models",
        "provenance",
        "sandbox",
        "serve",
        "setup",
        "sign",
        "text-to-image",
        "video-to-video",
    ]


@dataclass
class Running:
    """Sandbox in a process of its own, its address, and its output."""

    process: subprocess.Popen[str]
    url: str
    told: str


@pytest.fixture
def running(script) -> Iterator[Running]:
    """Run `prefect-cometapi sandbox --port 0` as a process."""
    process = subprocess.Popen(
        [script, "sandbox", "--port", "0", "--fault", "create:429:value=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    told = "".join(iter(process.stdout.readline, "Press Ctrl-C to stop.\n"))
    address = re.search(r"http://127\.0\.0\.1:\d+", told)
    assert address
    yield Running(process, address[0], told)
    process.kill()
    process.communicate()


@pytest.mark.heavy
def test_the_sandbox_answers_at_the_address_that_it_prints(running):
    """The sandbox command serves its documentation and its configured faults."""
    assert httpx.get(f"{running.url}/openapi.json").status_code == 200
    body = {"promptImage": "https://example.com/a.jpg", "model": "gen3a_turbo"}
    headers = {"Authorization": "Bearer sandbox", "X-Runway-Version": "2024-11-06"}
    answers = [
        httpx.post(f"{running.url}/runwayml/v1/image_to_video", json=body, headers=headers)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [429, 200]


@pytest.mark.heavy
def test_the_sandbox_ends_quietly_with_ctrl_c(running):
    """Ctrl-C ends the sandbox at once without an error, after it printed its usage."""
    assert f"export COMETAPI_BASE_URL={running.url} COMETAPI_KEY=sandbox" in running.told
    assert "export COMETAPI_ACCESS_TOKEN=sandbox-access-token" in running.told
    assert "prefect-cometapi image-to-video" in running.told
    running.process.send_signal(signal.SIGINT)
    assert running.process.communicate(timeout=10) == ("", "")
    assert running.process.returncode == 0


def closed_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]
