# SPDX-License-Identifier: Apache-2.0
"""Inspection and posters of videos and pictures, in a separate decoder process (decoder.py)."""

import atexit
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, BinaryIO

from pydantic import Field, TypeAdapter

from ..errors import InvalidOutput, StorageError
from ..models.model_limits import Makes
from ..redact import scrub

POSTER_WIDTH = 640
"""Width of a poster in pixels."""

ANSWER_TIMEOUT = 600.0
"""Timeout for one answer of the decoder in seconds. It may have to read 4 GB from a slow disk."""

START_TIMEOUT = 120.0
"""Timeout for the start of a decoder in seconds. It may have to load FFmpeg from a slow disk."""

EXIT_TIMEOUT = 5.0
"""Seconds in which a decoder has to exit by itself after its pipes are closed."""

_DECODER = Path(__file__).with_name("decoder.py")
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that Python needs. The API key is not among them."""


_Count = Annotated[int, Field(gt=0, lt=1 << 31)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video: width and height in pixels, duration in seconds."""

    width: _Count
    height: _Count
    duration: _Seconds
    frames: _Count
    codec: _Name


@dataclass(frozen=True)
class ImageInfo:
    """Properties of an image: width and height in pixels."""

    width: _Count
    height: _Count


PICTURES = {
    "png": (".png", "image/png"),
    "jpeg": (".jpeg", "image/jpeg"),  # not .jpg, which is the suffix of its poster
    "webp": (".webp", "image/webp"),
}
"""Suffix and media type of each kind of picture."""

_INFO = TypeAdapter(VideoInfo)
_IMAGE_INFO = TypeAdapter(ImageInfo)
_MAX_ANSWER = 8 << 20
"""Maximum characters of an answer; a poster takes about 100,000."""


def inspect_video(path: Path) -> VideoInfo:
    """Demux a video to its end and describe it.

    Raises:
        InvalidOutput: It is not an MP4, MOV or WebM, has no video, is not complete, or broke the
            decoder.
        StorageError: It cannot be read on this machine.
    """
    with _reject_malformed():
        return _INFO.validate_python(_decoder(os.getpid()).ask(path)["info"])


def inspect_image(path: Path) -> ImageInfo | None:
    """Decode a JPEG, PNG or WebP and describe it; return None for an animation.

    FFmpeg cannot decode an animated WebP, which may be complete all the same.

    Raises:
        InvalidOutput: It is none of these, is not complete, or broke the decoder.
        StorageError: It cannot be read on this machine.
    """
    with _reject_malformed():
        info = _decoder(os.getpid()).ask(path, image=True)["info"]
        return None if info == {} else _IMAGE_INFO.validate_python(info)


def inspect_output(path: Path, makes: Makes | None) -> VideoInfo:
    """Describe a complete video or picture; the ``codec`` of a picture is a key of ``PICTURES``.

    Args:
        path: The file.
        makes: Kind of file that is expected, or None if that is not known.

    Raises:
        InvalidOutput: It is of another kind, is not complete, or broke the decoder.
        StorageError: It cannot be read on this machine.
    """
    with _reject_malformed():
        return _INFO.validate_python(_decoder(os.getpid()).ask(path, makes=makes)["info"])


def draw_poster(video: Path, poster: Path, width: int = POSTER_WIDTH) -> None:
    """Write a frame from the middle of a video as a JPEG of the given width in pixels.

    The poster of a picture is a scaled copy of it.

    Raises:
        InvalidOutput: No frame can be decoded.
        StorageError: The video cannot be read on this machine.
        OSError: The poster cannot be written.
    """
    with _reject_malformed():
        jpeg = _decode_base64(_decoder(os.getpid()).ask(video, poster_width=width)["poster"])
    poster.write_bytes(jpeg)


def draw_contact_sheet(posters: Sequence[bytes]) -> bytes:
    """Return a JPEG with posters side by side, each fitted into a tile.

    Args:
        posters: JPEGs; at least one. The tile of an unreadable one stays dark.

    Raises:
        InvalidOutput: One of them broke the decoder.
        StorageError: The decoder does not start.
        OSError: There is no space for the temporary file with the posters.
    """
    with TemporaryDirectory(prefix="cometapi-") as folder, _reject_malformed():
        joined = Path(folder) / "posters"
        joined.write_bytes(b"".join(posters))
        answer = _decoder(os.getpid()).ask(joined, posters=[len(poster) for poster in posters])
        return _decode_base64(answer["sheet"])


def decoder_reaches() -> list[str]:
    """Return what a file that takes over the decoder can still reach.

    The list holds ``files``, ``network`` and ``processes``, and is empty if it can reach nothing.

    Raises:
        StorageError: The decoder does not start.
    """
    return _decoder(os.getpid()).reaches()


def _decode_base64(picture: str) -> bytes:
    return base64.b64decode(picture, validate=True)


@contextmanager
def _reject_malformed() -> Iterator[None]:
    """Turn malformed answers into an error; a decoder that a file took over may answer anything."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError):
        _decoder(os.getpid()).close()
        raise InvalidOutput("the output broke the decoder: its answer is not valid") from None


class Decoder:
    """Process that decodes videos, shared by all threads and started on demand.

    Args:
        program: Python file that the process runs.
    """

    def __init__(self, program: Path = _DECODER) -> None:
        self._program = program
        self._process: subprocess.Popen[str] | None = None
        self._questions: socket.socket | None = None
        self._reaches: list[str] = []
        self._lock = threading.Lock()

    def reaches(self) -> list[str]:
        """Return what the process could not give up access to before its first file.

        Raises:
            StorageError: The process does not start.
        """
        with self._lock:
            self._process = self._process or self._start()
            return self._reaches

    def ask(self, path: Path, **options: Any) -> dict[str, Any]:
        """Return the description of a video, its poster, or a contact sheet of several posters.

        Raises:
            InvalidOutput: The file is not a valid video, or the process did not survive it.
            StorageError: The file cannot be read, or the process does not start.
        """
        question = json.dumps({"file": str(path), **options}) + "\n"
        try:
            file = path.open("rb")
        except OSError as error:
            raise StorageError(f"the downloaded file cannot be read: {error.strerror}") from error
        with file, self._lock:
            line = self._exchange(question, file)
            if not line:
                raise InvalidOutput(f"the output broke the decoder, which {self._stop()}")
        answer: dict[str, Any] = json.loads(line)
        if refused := answer.get("refused"):
            raise InvalidOutput(scrub(str(refused)))
        if "errno" in answer:
            raise StorageError(
                f"the downloaded file cannot be read: {scrub(str(answer['strerror']))}"
            )
        return answer

    def close(self) -> None:
        """End the process; it starts again on demand."""
        with self._lock:
            if self._process:
                _kill(self._process)
                self._stop()

    def _exchange(self, question: str, file: BinaryIO) -> str:
        process = self._process = self._process or self._start()
        assert process.stdout  # noqa: S101 -- it is a pipe
        try:
            with _kill_after(process, ANSWER_TIMEOUT):
                if self._questions:  # everywhere except on Windows
                    socket.send_fds(self._questions, [question.encode()], [file.fileno()])
                else:
                    print(question, end="", file=process.stdin, flush=True)
                return process.stdout.readline(_MAX_ANSWER)
        except OSError:  # the process has ended
            return ""

    def _start(self) -> subprocess.Popen[str]:
        ours, theirs = socket.socketpair() if hasattr(socket, "send_fds") else (None, None)
        with theirs or nullcontext():
            process = subprocess.Popen(  # noqa: S603 -- this Python, and a file of ours
                [sys.executable, "-P", str(self._program)],
                stdin=theirs.fileno() if theirs else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                text=True,
                start_new_session=True,  # so that only this process receives Ctrl-C
            )
        self._questions = ours
        assert process.stdout  # noqa: S101 -- it is a pipe
        with _kill_after(process, START_TIMEOUT):
            ready, *self._reaches = process.stdout.readline(_MAX_ANSWER).split() or [""]
        if not ready:
            self._process = process
            raise StorageError(f"this machine cannot read videos: the decoder {self._stop()}")
        return process

    def _stop(self) -> str:
        """End the process, and return how it ended."""
        process, self._process = self._process, None
        assert process  # noqa: S101 -- it was started
        if self._questions:
            self._questions.close()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_TIMEOUT)
        _kill(process)
        process.wait()
        if process.returncode < 0:
            return f"was ended by {signal.Signals(-process.returncode).name}"
        return f"ended with {process.returncode}"


@contextmanager
def _kill_after(process: subprocess.Popen[str], timeout: float) -> Iterator[None]:
    """Kill a process if the block takes longer than the timeout.

    The process limits its own processor time, but a sleeping process never reaches that limit.
    """
    late = threading.Timer(timeout, _kill, [process])
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and all processes of its group."""
    with suppress(ProcessLookupError, AttributeError):  # Windows has no process groups
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


@cache
def _decoder(_process: int) -> Decoder:
    """Return the decoder of this process; a forked child must not share its parent's."""
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder
