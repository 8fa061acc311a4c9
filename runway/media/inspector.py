# SPDX-License-Identifier: Apache-2.0
"""Inspection and posters of videos and pictures, in a separate decoder process (decoder.py)."""

import atexit
import base64
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import IO, Annotated, Any, BinaryIO

from pydantic import Field, TypeAdapter

from ..errors import InvalidOutput, StorageError
from ..models.generation import Provenance
from ..models.model_limits import Makes
from ..redact import scrub
from .provenance import provenance_of

POSTER_WIDTH = 640
"""Width of a poster in pixels."""

ANSWER_TIMEOUT = 600.0
"""Timeout for one answer of the decoder in seconds. It may have to read 4 GB from a slow disk."""

START_TIMEOUT = 120.0
"""Timeout for the start of a decoder in seconds. It may have to load FFmpeg from a slow disk."""

EXIT_TIMEOUT = 5.0
"""Seconds in which a decoder has to exit by itself after its pipes are closed."""

BROKE_READER = "the file has C2PA data that broke its reader"
"""Problem of a manifest that ended the decoder, or to which the answer is not valid."""

_DECODER = Path(__file__).with_name("decoder.py")
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that Python needs. The API key is not among them."""

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}
"""Settings of glibc's memory allocator: keep the memory of a frame for the next file.

By default, it depends on chance if memory of this size goes back to the kernel after each file. To
get it again takes a millisecond, a third of the time for a short clip.
"""


_Count = Annotated[int, Field(gt=0, lt=1 << 31)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video: width and height in pixels, duration in seconds, C2PA provenance."""

    width: _Count
    height: _Count
    duration: _Seconds
    frames: _Count
    codec: _Name
    provenance: Provenance | None = None


@dataclass(frozen=True)
class ImageInfo:
    """Properties of an image: width and height in pixels."""

    width: _Count
    height: _Count


SUFFIXES = {
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "image/png": ".png",
    "image/jpeg": ".jpeg",  # not .jpg, which is the suffix of its poster
    "image/webp": ".webp",
}
"""Suffix of each media type that an output may have."""

_INFO = TypeAdapter(VideoInfo)
_IMAGE_INFO = TypeAdapter(ImageInfo)
_MAX_ANSWER = 8 << 20
"""Maximum bytes of an answer; a poster takes about 100,000."""

_PIECE = 64 << 10
"""Maximum bytes of an answer that are read at a time: the size of a pipe on Linux."""


def inspect_video(path: Path) -> VideoInfo:
    """Demux a video to its end and describe it.

    Raises:
        InvalidOutput: It is not an MP4, MOV or WebM, has no video, is not complete, or broke the
            decoder.
        StorageError: It cannot be read on this machine.
    """
    with _reject_malformed():
        info = _INFO.validate_python(_decoder(os.getpid()).ask(path)["info"])
    return replace(info, provenance=read_provenance(path))


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


def examine_output(
    path: Path, makes: Makes | None, poster_width: int = POSTER_WIDTH
) -> tuple[VideoInfo, bytes]:
    """Describe a complete video or picture, and draw its poster.

    Args:
        path: The file.
        makes: Kind of file that is expected, or None for either.
        poster_width: Width of the poster in pixels.

    Returns:
        Properties of the file, where the ``codec`` of a picture is its format; and a JPEG of a
        frame from the middle of a video, or of a scaled picture.

    Raises:
        InvalidOutput: It is of another kind, is not complete, or broke the decoder; or no frame can
            be decoded.
        StorageError: It cannot be read on this machine.
    """
    with _reject_malformed():
        answer = _decoder(os.getpid()).ask(path, makes=makes, poster_width=poster_width)
        info, poster = _INFO.validate_python(answer["info"]), _decode_base64(answer["poster"])
    return replace(info, provenance=read_provenance(path)), poster


def read_provenance(path: Path) -> Provenance:
    """Return the C2PA provenance that a file states, without an examination of its media.

    This is a question of its own to the decoder, because a paid-for video is never refused for its
    manifest: one that breaks the decoder is reported as a problem.

    Raises:
        StorageError: The file cannot be read on this machine.
    """
    try:
        with _reject_malformed():
            return provenance_of(_decoder(os.getpid()).ask(path, manifest=True)["manifest"])
    except InvalidOutput:
        return Provenance(found=False, problem=BROKE_READER)


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


def start_decoder() -> None:
    """Start the decoder before its first file is here, since that takes 0.2 s.

    An error is raised by the first file instead, for which the decoder is started again.
    """
    with suppress(StorageError):
        _decoder(os.getpid()).reaches()


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
        self._process: subprocess.Popen[bytes] | None = None
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
        question = json.dumps({"file": str(path), **options}).encode() + b"\n"
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

    def _exchange(self, question: bytes, file: BinaryIO) -> bytes:
        process = self._process = self._process or self._start()
        try:
            if self._questions:  # everywhere except on Windows
                socket.send_fds(self._questions, [question], [file.fileno()])
            else:
                assert process.stdin  # noqa: S101 -- it is a pipe
                process.stdin.write(question)
                process.stdin.flush()
            return _read_line(process, ANSWER_TIMEOUT)
        except OSError:  # the process has ended
            return b""

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair() if hasattr(socket, "send_fds") else (None, None)
        with theirs or nullcontext():
            process = subprocess.Popen(  # noqa: S603 -- this Python, and a file of ours
                [sys.executable, "-P", str(self._program)],
                stdin=theirs.fileno() if theirs else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
                | _MALLOC,
                start_new_session=True,  # so that only this process receives Ctrl-C
            )
        self._questions = ours
        ready, *self._reaches = _read_line(process, START_TIMEOUT).decode().split() or [""]
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


def _read_line(process: subprocess.Popen[bytes], timeout: float) -> bytes:
    """Return a line that a process writes, and kill the process if that takes too long.

    The process limits its own processor time, but a sleeping process never reaches that limit.

    Args:
        process: Process whose output is a pipe.
        timeout: Seconds.

    Returns:
        The line, without its end if the process ends within it or writes too much; nothing if the
        process has ended or was killed.
    """
    assert process.stdout  # noqa: S101 -- it is a pipe
    if not hasattr(select, "poll"):
        return _read_line_on_windows(process, process.stdout, timeout)
    pipe, deadline, line = process.stdout.fileno(), monotonic() + timeout, bytearray()
    written = select.poll()
    written.register(pipe, select.POLLIN)
    while not line.endswith(b"\n") and len(line) < _MAX_ANSWER:
        if not written.poll(1000 * max(0.0, deadline - monotonic())):
            _kill(process)
            return b""
        if not (piece := os.read(pipe, _PIECE)):
            break
        line += piece
    return bytes(line)


def _read_line_on_windows(
    process: subprocess.Popen[bytes], pipe: IO[bytes], timeout: float
) -> bytes:
    """Read a line where a pipe cannot be waited for; a thread for each line costs 0.1 ms."""
    late = threading.Timer(timeout, _kill, [process])
    late.start()
    try:
        return pipe.readline(_MAX_ANSWER)
    finally:
        late.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
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
