# SPDX-License-Identifier: Apache-2.0
"""A file from elsewhere breaks at most the process that opens it."""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest

from prefect_cometapi.runway import InvalidOutput, StorageError, decoder, media
from prefect_cometapi.runway.media import Decoder


@pytest.fixture
def asked():
    """A decoder of its own."""
    one = Decoder()
    yield one
    one.close()


def process_of(one: Decoder) -> int:
    assert one._process
    return one._process.pid


def told(*questions: dict[str, object]) -> list[dict[str, object]]:
    """What the process would answer, asked in this one."""
    answers = StringIO()
    decoder.serve(StringIO("".join(json.dumps(one) + "\n" for one in questions)), answers)
    ready, *lines = answers.getvalue().splitlines()
    assert ready == "ready"
    return [json.loads(line) for line in lines]


CLIPS = ["clip.mp4", "clip.webm", "live.webm", "sound.mp4", "no-size.mp4", "unknown-codec.mp4"]


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("poster_width", [None, 320])
def test_the_process_tells_what_the_functions_find(clips, asked, name, poster_width):
    """Nothing is lost between the two processes: neither a description nor a refusal."""
    question = {"video": str(clips / name), "poster_width": poster_width}
    (answer,) = told(question)
    if refused := answer.get("refused"):
        with pytest.raises(InvalidOutput, match=str(refused)):
            asked.ask(clips / name, poster_width)
    else:
        assert asked.ask(clips / name, poster_width) == answer


@pytest.mark.parametrize("kept", [0, 3, 20, 400, 3000])
def test_what_is_no_whole_video_is_answered(clips, tmp_path, kept):
    """However little of it is there, as a refusal and not as the end of the process."""
    for name in ("clip.mp4", "clip.webm"):
        (tmp_path / name).write_bytes((clips / name).read_bytes()[:kept])
        assert "refused" in told({"video": str(tmp_path / name), "poster_width": None})[0]


def test_a_file_that_kills_the_decoder_is_refused_and_the_next_one_is_read(clips, tmp_path, asked):
    """As a bug in the decoder would: this process goes on, and says which signal it was."""
    asked.ask(clips / "clip.mp4")
    pipe = tmp_path / "endless.mp4"
    os.mkfifo(pipe)

    def kill_once_it_reads() -> None:
        with pipe.open("wb"):
            os.kill(process_of(asked), signal.SIGSEGV)

    killing = threading.Thread(target=kill_once_it_reads)
    killing.start()
    with pytest.raises(InvalidOutput, match="broke the decoder, which was ended by SIGSEGV"):
        asked.ask(pipe)
    killing.join()
    assert asked.ask(clips / "clip.mp4")["info"]["frames"] == 48


def test_a_decoder_that_died_between_two_files_is_told(clips, asked):
    """The question cannot even be asked; the attempt is repeated by the fetch, which is free."""
    asked.ask(clips / "clip.mp4")
    os.kill(process_of(asked), signal.SIGKILL)
    os.waitid(os.P_PID, process_of(asked), os.WEXITED | os.WNOWAIT)
    with pytest.raises(InvalidOutput, match="ended by SIGKILL"):
        asked.ask(clips / "clip.mp4")
    assert asked.ask(clips / "clip.mp4")["info"]["frames"] == 48


def test_a_file_that_takes_too_long_ends_the_process(tmp_path):
    """Bounded in processor time, so a busy machine breaks no file."""
    program = tmp_path / "endless.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(decoder.__file__).parent)!r})\n"
        "import decoder\n"
        "def endless(**_):\n    while True: pass\n"
        "decoder._answer = endless\n"
        "decoder.serve(sys.stdin, sys.stdout, cpu_seconds=0.1)\n"
    )
    one = Decoder(program)
    with pytest.raises(InvalidOutput, match="ended by SIGPROF"):
        one.ask(tmp_path / "any.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_who_opens_a_strangers_file_has_no_key_and_cannot_write(clips, asked, monkeypatch):
    """It knows no secret of the environment, and its memory is bounded."""
    monkeypatch.setenv("COMETAPI_KEY", "sk-canary")
    asked.ask(clips / "clip.mp4")
    process = Path(f"/proc/{process_of(asked)}")
    assert b"sk-canary" not in (process / "environ").read_bytes()
    limits = (process / "limits").read_text()
    for limit, value in {
        "Max address space": decoder.MEMORY,
        "Max file size": 0,
        "Max core file size": 0,
    }.items():
        line = next(line for line in limits.splitlines() if line.startswith(limit))
        assert line.removeprefix(limit).split()[:2] == [str(value), str(value)]


def test_a_decoder_that_does_not_start_is_the_machines_fault(tmp_path, clips):
    """The video is not blamed, and what to do next is said."""
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    with pytest.raises(StorageError, match="cannot read videos: the decoder ended with 3"):
        Decoder(program).ask(clips / "clip.mp4")


def test_a_download_that_is_gone_is_the_machines_fault(tmp_path, asked):
    """It is fetched again, and not said to be damaged."""
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        asked.ask(tmp_path / "gone.mp4")
    assert "errno" in told({"video": str(tmp_path / "gone.mp4"), "poster_width": None})[0]


def test_a_video_that_needs_too_much_memory_is_refused(clips, monkeypatch):
    """The bound is told."""

    def greedy(_path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, "inspect_video", greedy)
    question = {"video": str(clips / "clip.mp4"), "poster_width": None}
    assert told(question) == [{"refused": "the output needs more than 2 GB of memory to be read"}]


def test_each_process_has_a_decoder_of_its_own():
    """A forked child must not talk into the conversation of its parent."""
    assert media._decoder(1) is media._decoder(1)
    assert media._decoder(1) is not media._decoder(2)
    media._decoder(2).close()


def test_the_process_ends_with_its_parent(clips):
    """However the parent ends: nothing is left behind on the machine."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from prefect_cometapi.runway import media\n"
        "media.inspect_video(Path(sys.argv[1]))\n"
        "print(media._decoder(os.getpid())._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(clips / "clip.mp4")],
        stdout=subprocess.PIPE,  # which the decoder has not, so this ends when the parent does
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    with suppress(ProcessLookupError):  # it is gone already
        child = os.pidfd_open(int(ran.stdout))
        ended, _, _ = select.select([child], [], [], 30)
        os.close(child)
        assert ended


def test_limits_never_rise_above_those_of_the_machine(monkeypatch):
    """Where an administrator allows less, less it stays."""
    set_to: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1000, 1000))
    monkeypatch.setattr(resource, "setrlimit", set_to.__setitem__)
    monkeypatch.setattr(sys, "stdin", StringIO())
    decoder.main()
    assert set_to[resource.RLIMIT_AS] == (1000, 1000)
    assert set_to[resource.RLIMIT_FSIZE] == (0, 0)


def test_without_limits_it_still_reads(clips, monkeypatch):
    """Windows has none of them."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(signal, "setitimer")
    decoder.confine()
    assert told({"video": str(clips / "clip.mp4"), "poster_width": None})[0]["info"]


@pytest.mark.parametrize(
    "answer",
    ["nonsense", "{}", "[]", '{"info": {"width": "wide"}, "poster": "!"}', "x" * 9_000_000],
    ids=["nonsense", "nothing", "list", "wrong", "endless"],
)
def test_a_decoder_that_was_taken_over_is_not_believed(tmp_path, monkeypatch, answer):
    """Whatever it answers is a description of the right form, or an invalid output."""
    program = tmp_path / "taken_over.py"
    program.write_text(
        f"print('ready', flush=True)\nfor _ in open(0): print({answer!r}, flush=True)"
    )
    one = Decoder(program)
    monkeypatch.setattr(media, "_decoder", lambda _process: one)
    for look in (
        lambda: media.inspect_video(tmp_path / "any.mp4"),
        lambda: media.draw_poster(tmp_path / "any.mp4", tmp_path / "poster.jpg"),
    ):
        with pytest.raises(InvalidOutput, match="answers nonsense"):
            look()
    assert not (tmp_path / "poster.jpg").exists()
    one.close()


def test_a_decoder_that_sleeps_is_ended(tmp_path, monkeypatch):
    """A limit for time on a processor does not end what waits; the next file is read."""
    program = tmp_path / "sleeping.py"
    program.write_text("import time\nprint('ready', flush=True)\ninput()\ntime.sleep(600)\n")
    monkeypatch.setattr(media, "PATIENCE", 0.2)
    asleep = Decoder(program)
    with pytest.raises(InvalidOutput, match="was ended by SIGKILL"):
        asleep.ask(tmp_path / "any.mp4")
