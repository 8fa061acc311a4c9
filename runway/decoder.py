# SPDX-License-Identifier: Apache-2.0
"""Opens videos and pictures that came from elsewhere, in a process of its own.

A decoder is a large piece of C that reads what a stranger wrote. So it runs here, without the key,
and within bounds of memory and time: a file that breaks it breaks only this process. Each video
comes as an open file from the process that asks, so this one needs no other, and gives up reaching
anything else before it reads the first: a file that takes it over finds nothing, and nobody to
tell. It imports nothing of the package, so that it starts quickly and stays small, and speaks JSON,
a line for a line.

A header is not enough: an MP4 with its index in front still tells its full duration after 95 % of
it was cut away. So the file is demuxed to its last packet, which costs milliseconds, and what is
really there is held against what the header promises. Only the two containers that Runway
delivers are opened, and nothing beside the file, so a playlist in disguise reaches no network.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from runpy import run_path
from typing import Any, BinaryIO, TextIO

COMPLETE = 0.98
"""Share of the promised duration that must be there; the last frame's own length may be missing."""

MEMORY = 2 << 30
"""Bytes of address space."""

CPU_SECONDS = 60.0
"""Processor time for one file, in seconds."""

_AT_ONCE = 256 << 10
"""Bytes that are read at once."""


class Refused(Exception):
    """The file is no whole video."""


def inspect_video(video: BinaryIO) -> dict[str, Any]:
    """Demux a video to its end and describe it: width and height in pixels, duration in seconds.

    Raises:
        Refused: It is no MP4, MOV or WebM, has no video, or is not whole.
    """
    from av.error import FFmpegError

    try:
        with _open(video) as container:
            if not container.streams.video:
                raise Refused("the output holds no video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise Refused("the output is a video of no known codec")
            ends, frames, corrupt = {stream.index: 0.0}, 0, False
            for packet in container.demux():
                corrupt = corrupt or packet.is_corrupt
                if packet.pts is None or not packet.size or packet.time_base is None:
                    continue
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                index = packet.stream_index
                ends[index] = max(ends.get(index, 0.0), end)
                frames += index == stream.index
            info = {
                "width": stream.width,
                "height": stream.height,
                "duration": round(ends[stream.index], 3),
                "frames": frames,
                "codec": stream.codec_context.name,
            }
            arrived, promised = _arrived_and_promised(ends, container, stream)
    except (FFmpegError, ValueError, EOFError) as error:
        raise Refused(f"the output is no readable video: {_reason(error)}") from None
    if corrupt or not frames or arrived < COMPLETE * promised:
        raise Refused(f"the output is cut off: {arrived:g} s of {promised:g} s are there")
    if not (info["width"] and info["height"]):
        raise Refused("the output's frames have no size")
    return info


def draw_poster(video: BinaryIO, width: int) -> bytes:
    """A frame from the middle of a video as a JPEG of the given width in pixels.

    Raises:
        Refused: No frame can be decoded.
    """
    from av.error import FFmpegError

    try:
        with _open(video) as container:
            if not container.streams.video:
                raise Refused("the output holds no video")
            stream = container.streams.video[0]
            if stream.codec_context:
                stream.codec_context.thread_count = 1  # for one frame, more are but a loss
            if container.duration:
                container.seek(container.duration // 2)
            frame = next(container.decode(stream))
        height = max(2, round(frame.height * width / frame.width / 2) * 2)
        return as_jpeg(frame.reformat(width=width, height=height, format="yuvj420p", threads=1))
    except (FFmpegError, StopIteration, ValueError) as error:
        raise Refused(f"no frame of the output can be decoded: {_reason(error)}") from None


def draw_contact_sheet(posters: BinaryIO, sizes: Sequence[int]) -> bytes:
    """A JPEG with posters side by side that lie one after the other in a file.

    Args:
        posters: The file.
        sizes: Bytes of each.
    """
    return as_jpeg(_beside("contact_sheet.py")["side_by_side"]([posters.read(n) for n in sizes]))


def as_jpeg(picture: Any) -> bytes:
    """A video frame in yuvj420p as a JPEG."""
    import av

    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {"qmin": "3", "qmax": "5"}
    picture.pts, picture.time_base = 0, encoder.time_base
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode()])


def _open(video: BinaryIO) -> Any:
    import av

    none = {"protocol_whitelist": "none"}
    return av.open(video, format=_container(video), buffer_size=_AT_ONCE, options=none)


def _container(video: BinaryIO) -> str:
    head = video.read(12)
    video.seek(0)
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    raise Refused(f"the output is no MP4 or WebM; it begins with {head!r}")


def _arrived_and_promised(
    ends: dict[int, float], container: Any, stream: Any
) -> tuple[float, float]:
    """Seconds that are there and seconds that the header promises, of the same thing.

    An MP4 tells the duration of each stream, a WebM only that of the whole file.
    """
    if stream.duration and stream.time_base:
        return ends[stream.index], float(stream.duration * stream.time_base)
    return max(ends.values()), container.duration / 1_000_000 if container.duration else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def asked() -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """The questions: each a file, open for reading, and what is wanted of it.

    Where a process can pass no open file, which is on Windows, it is opened here.
    """
    if not hasattr(socket, "recv_fds"):
        for line in sys.stdin:
            question = json.loads(line)
            with Path(question["file"]).open("rb") as file:
                yield file, question
        return
    with socket.socket(fileno=sys.stdin.fileno()) as questions:
        while True:
            line, files, _, _ = socket.recv_fds(questions, _AT_ONCE, 1)
            if not line:
                return
            with os.fdopen(files[0], "rb", buffering=0) as file:
                yield file, json.loads(line)


def serve(
    questions: Iterable[tuple[BinaryIO, dict[str, Any]]],
    answers: TextIO,
    cpu_seconds: float = CPU_SECONDS,
) -> None:
    """Answer each in a line until there are no more; one that takes too long ends the process.

    The first line is ``ready`` and what this process reaches besides.
    """
    print("ready", *_beside("confinement.py")["reached"](), file=answers, flush=True)
    for file, wanted in questions:
        _alarm_after(cpu_seconds)
        print(json.dumps(_answer(file, wanted)), file=answers, flush=True)
        _alarm_after(0)


def _answer(file: BinaryIO, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        if width := wanted.get("poster_width"):
            return {"poster": base64.b64encode(draw_poster(file, width)).decode()}
        if sizes := wanted.get("posters"):
            return {"sheet": base64.b64encode(draw_contact_sheet(file, sizes)).decode()}
        return {"info": inspect_video(file)}
    except Refused as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"the output needs more than {MEMORY >> 30} GB of memory to be read"}
    except OSError as error:
        return {"errno": error.errno, "strerror": error.strerror}


def _alarm_after(cpu_seconds: float) -> None:
    with contextlib.suppress(AttributeError):  # Windows has no such timer
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


@cache
def _beside(name: str) -> dict[str, Any]:
    """What stands in a file of this folder, which cannot be imported from here."""
    return run_path(str(Path(__file__).with_name(name)))


def load() -> None:
    """Import what is needed, some of which `av` would only when it needs it."""
    import av.subtitles.codeccontext
    import av.subtitles.stream  # noqa: F401

    for name in ("confinement.py", "contact_sheet.py"):
        _beside(name)


def main() -> None:
    """What the process does."""
    load()
    _beside("confinement.py")["confine"](MEMORY)
    serve(asked(), sys.stdout)


if __name__ == "__main__":  # pragma: no cover -- in its own process
    main()
