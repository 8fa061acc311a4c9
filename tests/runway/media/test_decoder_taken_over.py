# SPDX-License-Identifier: Apache-2.0
"""A taken-over decoder may answer or do anything, but it blocks nobody."""

import json
from pathlib import Path

import pytest

from prefect_cometapi.runway import InvalidOutput, StorageError
from prefect_cometapi.runway.media import decoder, inspector
from prefect_cometapi.runway.media.inspector import Decoder
from prefect_cometapi.runway.models.generation import Provenance


@pytest.mark.parametrize(
    "answer",
    [
        "nonsense",
        "{}",
        "[]",
        '{"info": {"width": "wide"}, "poster": "!", "sheet": "!"}',
        "x" * 9_000_000,
    ],
    ids=["nonsense", "nothing", "list", "wrong", "endless"],
)
def test_a_decoder_that_was_taken_over_is_not_believed(tmp_path, monkeypatch, answer):
    """Every answer becomes a valid description or an invalid output."""
    program = tmp_path / "taken_over.py"
    program.write_text(
        f"print('ready', flush=True)\nfor _ in open(0): print({answer!r}, flush=True)"
    )
    one = Decoder(program)
    monkeypatch.setattr(inspector, "_decoder", lambda _process: one)
    for look in (
        lambda: inspector.inspect_video(program),
        lambda: inspector.examine_output(program, "video"),
        lambda: inspector.draw_contact_sheet([b"poster"]),
    ):
        with pytest.raises(InvalidOutput, match="its answer is not valid"):
            look()
    one.close()


@pytest.mark.parametrize(
    "ending",
    ["os.abort()", "return {'manifest': {'found': 'perhaps'}}", "return {'refused': 'no memory'}"],
    ids=["crash", "nonsense", "refusal"],
)
def test_a_manifest_that_breaks_the_decoder_costs_no_video(clips, tmp_path, monkeypatch, ending):
    """The video is described as before, and the problem of its manifest is reported."""
    program = tmp_path / "fragile.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(decoder.__file__).parent)!r})\n"
        "import decoder\nanswer = decoder._answer\n"
        "def fragile(file, question):\n"
        f"    if question.get('manifest'): {ending}\n"
        "    return answer(file, question)\n"
        "decoder._answer = fragile\n"
        "decoder.serve(decoder.read_questions(), sys.stdout)\n"
    )
    one = Decoder(program)
    monkeypatch.setattr(inspector, "_decoder", lambda _process: one)
    info, poster = inspector.examine_output(clips / "clip.mp4", "video")
    assert (info.frames, poster[:2]) == (48, b"\xff\xd8")
    broken = Provenance(found=False, problem="the file has C2PA data that broke its reader")
    assert info.provenance == inspector.read_provenance(clips / "clip.mp4") == broken
    one.close()


@pytest.mark.parametrize(
    "answer",
    [{"refused": f"\x1b[2J\n{'a' * 5000}"}, {"errno": 5, "strerror": f"\x1b[2J\n{'a' * 5000}"}],
    ids=["refusal", "error"],
)
def test_the_words_of_a_decoder_that_was_taken_over_are_untrusted(tmp_path, answer):
    """The text of a taken-over decoder is limited to one line without control characters."""
    program = tmp_path / "taken_over.py"
    program.write_text(
        f"print('ready', flush=True)\nfor _ in open(0): print({json.dumps(answer)!r}, flush=True)"
    )
    one = Decoder(program)
    with pytest.raises((InvalidOutput, StorageError)) as raised:
        one.ask(program)
    one.close()
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 1000


INFO = {"width": 64, "height": 48, "duration": 2.0, "frames": 48, "codec": "h264"}


@pytest.mark.parametrize(
    "forged",
    [
        {"duration": float("nan")},
        {"duration": float("inf")},
        {"duration": -1.0},
        {"width": 0},
        {"height": -1},
        {"frames": 0},
        {"width": 2**70},
        {"codec": "\x1b[2J"},
        {"codec": "h" * 41},
    ],
    ids=str,
)
def test_no_video_is_described_as_what_it_cannot_be(tmp_path, monkeypatch, forged):
    """Invalid numbers, such as NaN, are refused, because they are billed by and stored."""
    program = tmp_path / "taken_over.py"
    answer = json.dumps({"info": INFO | forged})
    program.write_text(
        f"print('ready', flush=True)\nfor _ in open(0): print({answer!r}, flush=True)"
    )
    one = Decoder(program)
    monkeypatch.setattr(inspector, "_decoder", lambda _process: one)
    with pytest.raises(InvalidOutput, match="its answer is not valid"):
        inspector.inspect_video(program)
    one.close()


def test_a_decoder_that_sleeps_is_ended(tmp_path, monkeypatch):
    """A limit of processor time does not end a sleeping process, so a timeout ends it."""
    program = tmp_path / "sleeping.py"
    program.write_text("import time\nprint('ready', flush=True)\ninput()\ntime.sleep(600)\n")
    monkeypatch.setattr(inspector, "ANSWER_TIMEOUT", 0.2)
    asleep = Decoder(program)
    with pytest.raises(InvalidOutput, match="was ended by SIGKILL"):
        asleep.ask(program)


def test_a_decoder_that_writes_without_an_end_is_ended(tmp_path, monkeypatch):
    """The timeout is for the complete answer, however little of it arrives at a time."""
    program = tmp_path / "dripping.py"
    program.write_text(
        "import time\nprint('ready', flush=True)\ninput()\n"
        "while True:\n    print('x', end='', flush=True)\n    time.sleep(0.01)\n"
    )
    monkeypatch.setattr(inspector, "ANSWER_TIMEOUT", 0.2)
    dripping = Decoder(program)
    with pytest.raises(InvalidOutput, match="was ended by SIGKILL"):
        dripping.ask(program)


def test_a_decoder_that_never_reports_ready_is_ended(tmp_path, monkeypatch):
    """A decoder that hangs while it starts, as on a dead network disk, holds up no run for ever."""
    program = tmp_path / "hanging.py"
    program.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(inspector, "START_TIMEOUT", 0.2)
    with pytest.raises(StorageError, match="cannot read videos: the decoder was ended by SIGKILL"):
        Decoder(program).reaches()


def test_what_a_decoder_left_behind_does_not_hold_up_the_next_file(tmp_path, monkeypatch, clips):
    """A child that outlives the decoder could keep its pipe open."""
    program = tmp_path / "forking.py"
    program.write_text(
        "import os, time\nprint('ready', flush=True)\ninput()\nos.fork() or time.sleep(600)\n"
    )
    monkeypatch.setattr(inspector, "ANSWER_TIMEOUT", 0.2)
    forking = Decoder(program)
    with pytest.raises(InvalidOutput, match="ended with 0"):
        forking.ask(program)
    assert inspector.inspect_video(clips / "clip.mp4").frames


def test_a_decoder_that_says_no_more_is_ended(tmp_path, monkeypatch):
    """A decoder that closes its output but does not exit is killed."""
    program = tmp_path / "silent.py"
    program.write_text(
        "import os, time\nprint('ready', flush=True)\ninput()\nos.close(1)\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(inspector, "EXIT_TIMEOUT", 0.1)
    silent = Decoder(program)
    with pytest.raises(InvalidOutput, match="was ended by SIGKILL"):
        silent.ask(program)
