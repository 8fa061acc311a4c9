# SPDX-License-Identifier: Apache-2.0
"""Decoder of untrusted videos and pictures, which runs in its own process.

A decoder is a large piece of C code that reads untrusted data. So it runs here, without the API
key, and with limits on memory and time. A file that breaks it breaks only this process. The parent
process passes each video as an open file, except on Windows. So this process needs no other access,
and drops it before it reads the first file: on Linux, a file that takes it over can reach no files,
networks or other processes (confinement.py). This module imports nothing of the package, so that it
starts quickly and stays small. It speaks JSON, with one line of answer for each line of question.

Checking the header is not enough: an MP4 with its index in front still reports its full duration
after 95 % of it was cut off. So three checks look for a missing end: the lengths that the file
states are followed to its end (truncation.py), the index is compared with the length of the file,
and the file is demuxed to its last packet, which takes milliseconds. Packets of zeros come from a
download that left a gap. Only the two containers that Runway delivers are opened, and only the file
itself, so a disguised playlist cannot reach a network. A picture is decoded as a whole instead
(pictures.py), and only where one is expected.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from runpy import run_path
from typing import Any, BinaryIO, TextIO

MAX_MEMORY = 2 << 30
"""Maximum address space in bytes."""

CPU_TIMEOUT = 60.0
"""Maximum processor time for one file, in seconds."""

_READ_SIZE = 256 << 10
"""Maximum bytes of one read."""

_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
"""Boxes that an MP4 or MOV can begin with; old MOV files have no ftyp."""


_ZEROS = {"h264": 64, "hevc": 64, "mpeg4": 64, "vp8": 256, "vp9": 256}
"""Number of consecutive zero bytes that no packet of a codec contains.

H.264 and HEVC escape the third consecutive zero. The other encoders wrote at most 5 for still
pictures, in sizes up to 4K. AV1 may be padded with zeros.
"""

_NEVER_ZERO = {*_ZEROS, "av1", "libdav1d", "aac", "opus", "libopus"}
"""Codecs that never write a packet of zeros only, unlike silence in PCM."""


class InvalidVideo(Exception):
    """File that is not a complete video."""


def inspect_video(video: BinaryIO) -> dict[str, Any]:
    """Demux a video to its end and describe it: width and height in pixels, duration in seconds.

    Raises:
        InvalidVideo: It is not an MP4, MOV or WebM, has no video, or is not complete.
    """
    from av.error import FFmpegError

    try:
        kind = _container(video)
        end = _sibling("truncation.py")["find_end"](video, kind)
        size = video.seek(0, os.SEEK_END)
        _require_bytes(size, end.byte)
        with _open_container(video) as container:
            stream = _video_stream(container)
            if stream.codec_context is None:
                raise InvalidVideo("the output has a video stream with an unknown codec")
            packets = _demux(container, stream)
            if kind == "mp4":
                _require_bytes(size, _end_of_samples(container))
            if end.open:
                _require_seconds(packets, end.seconds or _stated_seconds(container, kind))
            info = {
                "width": stream.width,
                "height": stream.height,
                "duration": round(packets.ends[stream.index], 3),
                "frames": len(packets.starts),
                "codec": stream.codec_context.name,
            }
    except (FFmpegError, ValueError, EOFError) as error:
        raise InvalidVideo(f"the output is not a readable video: {_reason(error)}") from None
    if not packets.starts:
        raise InvalidVideo("the output is truncated: it has no frames")
    if not (info["width"] and info["height"]):
        raise InvalidVideo("the output's frames have no size")
    return info


def inspect_output(file: BinaryIO, makes: str | None) -> dict[str, Any]:
    """Describe a complete video or picture.

    Args:
        file: The file; its read position changes.
        makes: ``video`` or ``picture``, or None if both are possible.

    Raises:
        InvalidVideo: The file is not complete, or of another kind.
    """
    pictures = _sibling("pictures.py")
    kind = pictures["kind_of"](file) if makes != "video" else None
    if kind is None and makes != "picture":
        return inspect_video(file)
    if kind is None:
        file.seek(0)
        head = file.read(12)
        raise InvalidVideo(f"the output is not a PNG, JPEG or WebP; it begins with {head!r}")
    try:
        return pictures["inspect"](file, kind)
    except ValueError as error:
        raise InvalidVideo(str(error)) from None


@dataclass
class _Packets:
    """Packets of a file, in seconds: the end of each stream, and the start of each film frame."""

    ends: dict[int, float]
    starts: list[float] = field(default_factory=list)


def _demux(container: Any, stream: Any) -> _Packets:
    """Read every packet.

    Raises:
        InvalidVideo: A packet is incomplete or filled with zeros.
    """
    packets = _Packets({stream.index: 0.0})
    for packet in container.demux():
        if packet.is_corrupt or _has_zeroed_data(packet):
            raise InvalidVideo(
                f"the output is truncated: the packet at byte {packet.pos:,} is incomplete"
            )
        if packet.pts is None or not packet.size or packet.time_base is None:
            continue
        index, start = packet.stream_index, packet.pts * packet.time_base
        end = float(start + (packet.duration or 0) * packet.time_base)
        packets.ends[index] = max(packets.ends.get(index, 0.0), end)
        if index == stream.index:
            packets.starts.append(float(start))
    return packets


def _has_zeroed_data(packet: Any) -> bool:
    """Return True if a packet holds zeros where its codec writes none."""
    context = packet.stream.codec_context
    if not packet.size or context is None or context.name not in _NEVER_ZERO:
        return False
    content = bytes(packet)
    zeros = _ZEROS.get(context.name)
    return not any(content) or (zeros is not None and bytes(zeros) in content)


def _require_bytes(size: int, end: int) -> None:
    if end > size:
        raise InvalidVideo(f"the output is truncated: it has {size:,} of at least {end:,} bytes")


def _require_seconds(packets: _Packets, stated: float) -> None:
    """Reject a film that ends more than two frames early; the second one allows for rounding."""
    starts = sorted(packets.starts)
    frame = max((later - earlier for earlier, later in pairwise(starts)), default=stated)
    arrived = max(packets.ends.values())
    if arrived < stated - 2 * frame:
        raise InvalidVideo(f"the output is truncated: it has {arrived:g} s of {stated:g} s")


def _stated_seconds(container: Any, kind: str) -> float:
    """Return the duration that a WebM states, or 0.

    That of a fragmented MP4 is not used, because FFmpeg computes it.
    """
    return container.duration / 1_000_000 if kind == "matroska" and container.duration else 0.0


def _end_of_samples(container: Any) -> int:
    """Return the position at which the last sample of an MP4 ends, according to its tables."""
    indexes = (stream.index_entries for stream in container.streams)
    return max((entry.pos + entry.size for index in indexes for entry in index), default=0)


_IMAGES = ((b"\xff\xd8\xff", "jpeg_pipe"), (b"\x89PNG", "png_pipe"), (b"RIFF", "webp_pipe"))
"""FFmpeg's names of the formats of images, by the first bytes."""


def inspect_image(image: BinaryIO) -> dict[str, Any]:
    """Decode an image and describe it; an animated WebP, which FFmpeg cannot decode, has no size.

    Raises:
        InvalidVideo: It is not a JPEG, PNG or WebP, or it is not complete.
    """
    import av
    from av.error import FFmpegError

    image.seek(0)
    head = image.read(21)
    kind = next((name for start, name in _IMAGES if head.startswith(start)), None)
    if kind is None:
        raise InvalidVideo(f"the output is not a JPEG, PNG or WebP; it begins with {head[:12]!r}")
    if head[12:16] == b"VP8X" and head[20] & 2:
        return {}
    image.seek(0)
    try:
        opened: Any = av.open(image, format=kind, options={"protocol_whitelist": "none"})
        with opened as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}  # else half a JPEG is decoded
            frame = next(container.decode(stream))
    except (FFmpegError, StopIteration, ValueError, LookupError, EOFError) as error:
        raise InvalidVideo(f"the output cannot be decoded: {_reason(error)}") from None
    return {"width": frame.width, "height": frame.height}


def draw_poster(video: BinaryIO, width: int) -> bytes:
    """Return a frame from the middle of a video as a JPEG of the given width in pixels.

    A picture is scaled.

    Raises:
        InvalidVideo: No frame can be decoded.
    """
    from av.error import FFmpegError

    pictures = _sibling("pictures.py")
    try:
        if kind := pictures["kind_of"](video):
            return _scaled_jpeg(pictures["decode"](video, kind), width)
        with _open_container(video) as container:
            stream = _video_stream(container)
            if stream.codec_context:
                stream.codec_context.thread_count = 1  # more threads are slower for a single frame
            if container.duration:
                container.seek(container.duration // 2)
            frame = next(container.decode(stream))
        return _scaled_jpeg(frame, width)
    except (FFmpegError, StopIteration, ValueError) as error:
        raise InvalidVideo(f"no frame of the output can be decoded: {_reason(error)}") from None


def _scaled_jpeg(frame: Any, width: int) -> bytes:
    height = max(2, round(frame.height * width / frame.width / 2) * 2)
    return as_jpeg(frame.reformat(width=width, height=height, format="yuvj420p", threads=1))


def draw_contact_sheet(posters: BinaryIO, sizes: Sequence[int]) -> bytes:
    """Return a JPEG with posters side by side.

    Args:
        posters: File that holds the posters one after the other.
        sizes: Size of each poster in bytes.
    """
    return as_jpeg(_sibling("contact_sheet.py")["compose"]([posters.read(n) for n in sizes]))


def as_jpeg(picture: Any) -> bytes:
    """Encode a video frame in yuvj420p as a JPEG."""
    import av

    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {"qmin": "3", "qmax": "5"}
    picture.pts, picture.time_base = 0, encoder.time_base
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode()])


def _open_container(video: BinaryIO) -> Any:
    import av

    none = {"protocol_whitelist": "none"}
    kind = _container(video)
    video.seek(0)
    return av.open(video, format=kind, buffer_size=_READ_SIZE, options=none)


def _video_stream(container: Any) -> Any:
    """Return the first video stream that is not a cover picture.

    Raises:
        InvalidVideo: There is no such stream.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise InvalidVideo("the output contains no video")


def _container(video: BinaryIO) -> str:
    video.seek(0)
    head = video.read(12)
    if head[4:8] in _FIRST_BOXES:
        return "mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    raise InvalidVideo(f"the output is not an MP4 or WebM file; it begins with {head!r}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def read_questions() -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """Yield the questions, each as an open file and the request for it.

    If a process cannot pass open files, as on Windows, the file is opened here.
    """
    if not hasattr(socket, "recv_fds"):
        for line in sys.stdin:
            question = json.loads(line)
            with Path(question["file"]).open("rb") as file:
                yield file, question
        return
    with socket.socket(fileno=sys.stdin.fileno()) as questions:
        while True:
            line, files, _, _ = socket.recv_fds(questions, _READ_SIZE, 1)
            if not line:
                return
            with os.fdopen(files[0], "rb", buffering=0) as file:
                yield file, json.loads(line)


def serve(
    questions: Iterable[tuple[BinaryIO, dict[str, Any]]],
    answers: TextIO,
    cpu_seconds: float = CPU_TIMEOUT,
) -> None:
    """Answer each question with one line; a question that takes too long ends the process.

    The first line is ``ready``, followed by everything that this process can still reach.
    """
    print("ready", *_sibling("confinement.py")["reached"](), file=answers, flush=True)
    for file, question in questions:
        _alarm_after(cpu_seconds)
        print(json.dumps(_answer(file, question)), file=answers, flush=True)
        _alarm_after(0)


def _answer(file: BinaryIO, question: dict[str, Any]) -> dict[str, Any]:
    try:
        if width := question.get("poster_width"):
            return {"poster": base64.b64encode(draw_poster(file, width)).decode()}
        if sizes := question.get("posters"):
            return {"sheet": base64.b64encode(draw_contact_sheet(file, sizes)).decode()}
        if question.get("image"):
            return {"info": inspect_image(file)}
        return {"info": inspect_output(file, question.get("makes", "video"))}
    except InvalidVideo as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"the output takes more than {MAX_MEMORY >> 30} GB of memory to read"}
    except OSError as error:
        return {"errno": error.errno, "strerror": error.strerror}


def _alarm_after(cpu_seconds: float) -> None:
    with contextlib.suppress(AttributeError):  # not available on Windows
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


@cache
def _sibling(name: str) -> dict[str, Any]:
    """Run a file of this folder and return its globals; it cannot be imported from here."""
    return run_path(str(Path(__file__).with_name(name)))


def load() -> None:
    """Import everything early, including modules that `av` would import only on demand."""
    import av.subtitles.codeccontext
    import av.subtitles.stream  # noqa: F401

    for name in ("confinement.py", "contact_sheet.py", "pictures.py", "truncation.py"):
        _sibling(name)


def main() -> None:
    """Run the decoder process."""
    load()
    _sibling("confinement.py")["confine"](MAX_MEMORY)
    serve(read_questions(), sys.stdout)


if __name__ == "__main__":  # pragma: no cover -- in its own process
    main()
