# SPDX-License-Identifier: Apache-2.0
"""The demo works on a fresh machine: without an API key, a network, or a Prefect server."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest

from prefect_cometapi.deployments.commands import demo

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens"),
]

NOISE = ["error", "warning", "traceback", "telemetry", "____", "check out the dashboard", "info"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an empty folder to run the demo in."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def shown(folder, tmp_path_factory):
    """Run the demo in the folder with an unusable Prefect profile, and return its output."""
    own = ("COMETAPI_", "PREFECT_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env |= {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect-home")),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_API_KEY": "pnu_nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "prefect-cometapi", "demo"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.heavy
def test_two_clips_lie_in_the_folder_afterwards(shown, folder):
    """The demo leaves two whole videos, each with its poster and its sidecar."""
    videos = folder / "videos"
    stems = sorted(path.stem for path in videos.glob("*.mp4"))
    assert len(stems) == 2
    kinds = (".mp4", ".jpg", ".json")
    assert sorted(
        path.name for path in videos.iterdir() if not path.name.startswith(".")
    ) == sorted(f"{stem}{kind}" for stem in stems for kind in kinds)
    for stem in stems:
        with av.open(str(videos / f"{stem}.mp4"), "r") as clip:
            stream = clip.streams.video[0]
            assert (stream.width, stream.height) == (1280, 768)
            assert stream.codec_context.name == "h264"
            assert Fraction(clip.duration or 0, av.time_base) == pytest.approx(5.0, abs=0.05)
            assert sum(1 for _ in clip.decode(stream)) == stream.frames > 100
        with av.open(str(videos / f"{stem}.jpg"), "r") as poster:
            still = poster.streams.video[0]
            assert still.width * 768 == still.height * 1280
            assert still.width >= 320


@pytest.mark.heavy
def test_the_second_clip_is_the_first_one_restyled(shown, folder):
    """The demo shows both routes, and the second clip is the first one restyled."""
    first, second = (json.loads(path.read_text()) for path in sorted(folder.glob("videos/*.json")))
    assert [first["route"], second["route"]] == ["image_to_video", "video_to_video"]
    assert first["video"]["sha256"] != second["video"]["sha256"]
    assert second["request"]["videoUri"] == first["video"]["uri"]
    assert second["request"]["sources"] == {"videoUri": f"sha256:{first['video']['sha256']}"}


@pytest.mark.heavy
def test_it_ends_with_what_came_of_it_and_what_to_do_next(shown, folder):
    """The last lines are a table of the two files and the commands to continue with."""
    table, _, after = shown.stdout.rpartition("\nNext\n")
    header, first, second = table.strip().splitlines()[-3:]
    assert header.split() == ["file", "length", "size", "took", "polls"]
    for row in (first, second):
        assert (folder / row.split()[0]).exists()
        assert " 5.0 s " in row
    commands = [line.strip().split("  ")[0] for line in after.strip("\n").splitlines()]
    assert commands == [
        "prefect-cometapi ledger list",
        "prefect server start",
        "prefect-cometapi sandbox",
    ]


@pytest.mark.parametrize("is_on_path", [True, False])
def test_the_next_commands_can_be_run_as_they_are_printed(tmp_path, monkeypatch, is_on_path):
    """A command that is not on the path is printed with its folder."""
    folder = tmp_path / "my venv"
    folder.mkdir()
    for name in ("prefect-cometapi", "prefect"):
        (folder / name).write_text("#!/bin/sh\necho ran\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin" if is_on_path else "/bin")
    monkeypatch.setattr(sys, "argv", [str(folder / "prefect-cometapi"), "demo"])
    for words in demo.NEXT:
        shown = demo.runnable(words)
        assert (shown == words) == is_on_path
        done = subprocess.run(shown, shell=True, capture_output=True, text=True, check=True)
        assert done.stdout == "ran\n"


@pytest.mark.heavy
def test_it_prints_nothing_of_its_machinery(shown):
    """The output has no log lines, banners or warnings of Prefect."""
    assert shown.stderr == ""
    assert [word for word in NOISE if word in shown.stdout.lower()] == []
    assert len(shown.stdout.splitlines()) <= 15
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.heavy
def test_it_works_with_any_storage_and_buys_two_clips(
    prefect_server, command, tmp_path, monkeypatch, capsys
):
    """`demo --storage` keeps both clips there, whatever COMETAPI_* says."""
    monkeypatch.setattr(demo, "RENDER_SECONDS", 0.0)
    monkeypatch.setenv("COMETAPI_BASE_URL", "https://api.example.com")
    monkeypatch.setenv("COMETAPI_STORAGE", str(tmp_path / "unused"))
    assert command("demo", "--storage", str(tmp_path / "kept")) == 0
    assert len(list((tmp_path / "kept").glob("*.mp4"))) == 2
    assert not (tmp_path / "unused").exists()
    assert len(re.findall(r"^kept/\S+\.mp4 ", capsys.readouterr().out, re.MULTILINE)) == 2
