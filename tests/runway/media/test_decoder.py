# SPDX-License-Identifier: Apache-2.0
"""An untrusted file can break only the process that opens it."""

import base64
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from prefect_cometapi.runway import InvalidOutput, StorageError
from prefect_cometapi.runway.media import decoder
from prefect_cometapi.runway.media.inspector import Decoder
from prefect_cometapi.sandbox.clips.render import Recipe, render

from ...pictures import animation, picture
from .manifests import manifest, mp4, store


@pytest.fixture
def asked():
    """Start a decoder."""
    one = Decoder()
    yield one
    one.close()


def process_of(one: Decoder) -> int:
    assert one._process
    return one._process.pid


def told(video: Path, **wanted: Any) -> dict[str, object]:
    """Return the answer of the decoder's code, run in this process."""
    answers = StringIO()
    with video.open("rb", buffering=0) as file:
        decoder.serve([(file, wanted)], answers)
    ready, answer = answers.getvalue().splitlines()
    assert ready == "ready files network processes"
    return json.loads(answer)


@pytest.fixture
def standard_input(monkeypatch):
    """Replace standard input by a socket and return its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(sys, "stdin", theirs)
        yield ours
        theirs.detach()  # its reader has closed it


CLIPS = [
    "clip.mp4",
    "index-last.mp4",
    "clip.mov",
    "clip.webm",
    "live.webm",
    "sound.webm",
    "subtitled.mp4",
    "turned.mp4",
    "sound.mp4",
    "no-size.mp4",
    "unknown-codec.mp4",
]


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("wanted", [{}, {"poster_width": 320}], ids=["info", "poster"])
@pytest.mark.heavy
def test_the_process_tells_what_the_functions_find(clips, asked, name, wanted):
    """The confined process accepts and refuses the same files as the functions in this process."""
    answer = told(clips / name, **wanted)
    if refused := answer.get("refused"):
        with pytest.raises(InvalidOutput, match=str(refused)):
            asked.ask(clips / name, **wanted)
    else:
        assert asked.ask(clips / name, **wanted) == answer


def test_the_process_draws_what_the_function_draws(clips, asked, tmp_path):
    """The decoder draws several posters from one file."""
    drawn = [told(clips / "clip.mp4", poster_width=width)["poster"] for width in (64, 320)]
    posters = [base64.b64decode(str(poster)) for poster in drawn]
    (tmp_path / "posters").write_bytes(b"".join(posters))
    sizes = [len(poster) for poster in posters]
    answer = told(tmp_path / "posters", posters=sizes)
    assert base64.b64decode(str(answer["sheet"])).startswith(b"\xff\xd8")
    assert asked.ask(tmp_path / "posters", posters=sizes) == answer


@pytest.mark.parametrize("kept", [0, 3, 20, 400, 3000])
def test_what_is_no_whole_video_is_answered(clips, tmp_path, kept):
    """A truncated video is refused, however short it is, and the decoder continues."""
    for name in ("clip.mp4", "clip.webm"):
        (tmp_path / name).write_bytes((clips / name).read_bytes()[:kept])
        assert "refused" in told(tmp_path / name)


@pytest.mark.parametrize("wanted", [{}, {"posters": [1 << 20]}], ids=["video", "posters"])
def test_a_file_that_kills_the_decoder_is_refused_and_the_next_one_is_read(
    clips, tmp_path, asked, wanted
):
    """A decoder that crashes ends no other process, and the error names the signal."""
    asked.ask(clips / "clip.mp4")
    pipe = tmp_path / "endless.mp4"
    os.mkfifo(pipe)
    os.kill(process_of(asked), signal.SIGSTOP)  # so that it dies before it reads the question

    def kill_once_it_is_asked() -> None:
        with pipe.open("wb"):
            os.kill(process_of(asked), signal.SIGSEGV)
            os.kill(process_of(asked), signal.SIGCONT)

    killing = threading.Thread(target=kill_once_it_is_asked)
    killing.start()
    with pytest.raises(InvalidOutput, match="broke the decoder, which was ended by SIGSEGV"):
        asked.ask(pipe, **wanted)
    killing.join()
    assert asked.ask(clips / "clip.mp4")["info"]["frames"] == 48


def test_a_decoder_that_died_between_two_files_is_told(clips, asked):
    """The error is retried by the fetch, which is free."""
    asked.ask(clips / "clip.mp4")
    os.kill(process_of(asked), signal.SIGKILL)
    os.waitid(os.P_PID, process_of(asked), os.WEXITED | os.WNOWAIT)
    with pytest.raises(InvalidOutput, match="ended by SIGKILL"):
        asked.ask(clips / "clip.mp4")
    assert asked.ask(clips / "clip.mp4")["info"]["frames"] == 48


def test_a_file_that_takes_too_long_ends_the_process(tmp_path):
    """The limit counts processor time, so a busy machine refuses no good file."""
    program = tmp_path / "endless.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(decoder.__file__).parent)!r})\n"
        "import decoder\n"
        "def endless(*_):\n    while True: pass\n"
        "decoder._answer = endless\n"
        "decoder.serve(decoder.read_questions(), sys.stdout, cpu_seconds=0.1)\n"
    )
    one = Decoder(program)
    with pytest.raises(InvalidOutput, match="ended by SIGPROF"):
        one.ask(program)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_kept_for_the_next_file(tmp_path, asked):
    """The kernel need not provide the memory of a frame anew for each file."""

    def page_faults() -> int:
        state = Path("/proc", str(process_of(asked)), "stat").read_text()
        return int(state.rpartition(")")[2].split()[7])

    path = tmp_path / "clip.mp4"
    recipe = Recipe("image_to_video", "https://example.com/a.jpg", "zoom", 1, 960, 960, 2)
    path.write_bytes(render(recipe, None))
    for _ in range(3):
        asked.ask(path, poster_width=640)
    before = page_faults()
    for _ in range(5):
        asked.ask(path, poster_width=640)
    assert page_faults() - before < 300  # a frame alone has 337 pages


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_that_opens_an_untrusted_file_has_no_key(clips, asked, monkeypatch):
    """The decoder has no secrets in its environment, limited memory and only confined threads."""
    monkeypatch.setenv("COMETAPI_KEY", "sk-canary")
    for _ in range(3):
        asked.ask(clips / "clip.mp4")
    process = Path(f"/proc/{process_of(asked)}")
    assert b"sk-canary" not in (process / "environ").read_bytes()
    limits = (process / "limits").read_text()
    for limit, value in {
        "Max address space": decoder.MAX_MEMORY,
        "Max file size": 0,
        "Max core file size": 0,
    }.items():
        line = next(line for line in limits.splitlines() if line.startswith(limit))
        assert line.removeprefix(limit).split()[:2] == [str(value), str(value)]
    threads = [task / "status" for task in (process / "task").iterdir()]
    for status in [dict(line.split(":\t", 1) for line in one.open()) for one in threads]:
        assert status["NoNewPrivs"].strip() == "1"
        assert int(status["CapPrm"], 16) == 0
    opened = [one.readlink().name.split(":")[0] for one in (process / "fd").iterdir()]
    assert set(opened) - {"clip.mp4"} == {"socket", "pipe", "null"}
    assert len(opened) <= 4


@pytest.mark.skipif(sys.platform != "linux", reason="confines there only")
def test_what_a_decoder_reaches_is_tried_before_its_first_file(clips, asked):
    """The remaining access is measured before the first untrusted file, and can be shown."""
    reached = asked.reaches()
    pid = process_of(asked)
    asked.ask(clips / "clip.mp4")
    assert asked.reaches() == reached
    assert process_of(asked) == pid


def test_what_a_decoder_says_that_it_reaches_is_told(tmp_path):
    """A system without confinement is reported as such."""
    program = tmp_path / "free.py"
    program.write_text("import sys; print('ready files network', flush=True); sys.stdin.read()")
    free = Decoder(program)
    assert free.reaches() == ["files", "network"]
    free.close()


def test_a_decoder_that_does_not_start_is_the_machines_fault(tmp_path, clips):
    """The error does not blame the video and says what to do next."""
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    with pytest.raises(StorageError, match="cannot read videos: the decoder ended with 3"):
        Decoder(program).ask(clips / "clip.mp4")


def test_a_download_that_is_gone_is_the_machines_fault(tmp_path, asked):
    """The file is fetched again and is not called damaged."""
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        asked.ask(tmp_path / "gone.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_disk_that_fails_while_it_is_read_is_the_machines_fault(asked):
    """The video may be complete, so it is not called damaged."""
    unreadable = Path("/proc/self/mem")  # nothing is mapped where it begins
    with pytest.raises(StorageError, match="cannot be read: Input/output error"):
        asked.ask(unreadable)
    assert told(unreadable) == {"errno": errno.EIO, "strerror": "Input/output error"}


def test_a_video_that_needs_too_much_memory_is_refused(clips, monkeypatch):
    """The error names the memory limit."""

    def greedy(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, "examine_video", greedy)
    refused = {"refused": "the output takes more than 2 GB of memory to read"}
    assert told(clips / "clip.mp4") == refused


def test_a_manifest_is_read_by_a_question_of_its_own(clips, tmp_path):
    """An answer about a video does not depend on its manifest, which may break the decoder."""
    (tmp_path / "signed.mp4").write_bytes(mp4(store(manifest())))
    assert told(clips / "clip.mp4").keys() == {"info", "poster"}
    assert told(clips / "clip.mp4", manifest=True) == {"manifest": {"found": False}}
    answer = told(tmp_path / "signed.mp4", manifest=True)
    assert answer.keys() == {"manifest"}
    stated: Any = answer["manifest"]
    assert stated["found"]


def test_a_decoder_that_has_ended_leaves_nothing_open(clips, asked):
    """Replacing the decoder many times leaks no descriptors."""
    before = len(list(Path("/dev/fd").iterdir()))
    asked.ask(clips / "clip.mp4")
    asked.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_each_process_has_a_decoder_of_its_own(clips):
    """A forked child does not use the decoder of its parent."""
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from prefect_cometapi.runway.media import inspector as media\n"
        "def look():\n"
        "    frames = media.inspect_video(Path(sys.argv[1])).frames\n"
        "    print(media._decoder(os.getpid())._process.pid, frames, flush=True)\n"
        "look()\n"
        "child = os.fork()\n"
        "look()\n"
        "if not child:\n"
        "    media._decoder(os.getpid()).close()\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "look()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(clips / "clip.mp4")],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert [frames for _, frames in lines] == ["48"] * 4
    parents, childs = lines[0][0], ({pid for pid, _ in lines} - {lines[0][0]})
    assert len(childs) == 1
    assert [pid for pid, _ in lines].count(parents) == 3


def test_the_process_ends_with_its_parent(clips):
    """The decoder ends however its parent ends."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from prefect_cometapi.runway.media import inspector as media\n"
        "media.inspect_video(Path(sys.argv[1]))\n"
        "print(media._decoder(os.getpid())._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(clips / "clip.mp4")],
        stdout=subprocess.PIPE,  # the decoder has no copy, so it ends with the parent
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    with suppress(ProcessLookupError):  # already ended
        child = os.pidfd_open(int(ran.stdout))
        ended, _, _ = select.select([child], [], [], 30)
        os.close(child)
        assert ended


def test_the_program_confines_itself_and_answers(clips, standard_input, monkeypatch, capsys):
    """The program reads one video per question and ends when the questions end."""
    set_to: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", set_to.__setitem__)
    with (clips / "clip.mp4").open("rb") as file:
        socket.send_fds(standard_input, [b"{}"], [file.fileno()])
    standard_input.shutdown(socket.SHUT_WR)
    program = threading.Thread(target=decoder.main)  # confines only this thread
    program.start()
    program.join()
    ready, answer = capsys.readouterr().out.splitlines()
    assert ready.startswith("ready")
    assert json.loads(answer)["info"]["frames"] == 48
    assert set_to[resource.RLIMIT_AS][0] == decoder.MAX_MEMORY


WINDOWS = """
import signal, socket, sys

del socket.recv_fds, signal.setitimer
sys.modules["resource"], sys.platform = None, "win32"
sys.path.insert(0, {folder!r})
import decoder

decoder.main()
"""


def test_on_windows_a_video_is_opened_by_its_path(clips, tmp_path, monkeypatch):
    """Windows cannot pass open files, and a file that cannot be opened is reported."""
    program = tmp_path / "windows.py"
    program.write_text(WINDOWS.format(folder=str(Path(decoder.__file__).parent)))
    monkeypatch.delattr(socket, "send_fds")
    monkeypatch.delattr(select, "poll")
    one = Decoder(program)
    for name in ("clip.mp4", "index-last.mp4"):
        assert one.ask(clips / name)["info"]["frames"] == 48
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        one.ask(tmp_path / "gone.mp4")
    one.close()


def test_without_what_windows_lacks_it_still_reads(clips, monkeypatch, capsys):
    """Without limits, confinement and processor timers, the decoder still reads videos."""
    question = json.dumps({"file": str(clips / "clip.mp4")})
    monkeypatch.setattr(sys, "stdin", StringIO(question))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(socket, "recv_fds")
    monkeypatch.delattr(signal, "setitimer")
    decoder.main()
    assert json.loads(capsys.readouterr().out.splitlines()[1])["info"]["frames"] == 48


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (picture("WEBP"), {"info": {"width": 64, "height": 48}}),
        (animation("WEBP"), {"info": {}}),
        (picture("PNG")[:-60], "cannot be decoded"),
        (animation("GIF"), "is not a JPEG, PNG or WebP"),
    ],
)
def test_an_image_is_decoded_in_the_same_process(tmp_path, content, answer):
    """The question says that it is about an image."""
    path = tmp_path / "image"
    path.write_bytes(content)
    found = told(path, image=True)
    assert found == answer or answer in str(found.get("refused"))
