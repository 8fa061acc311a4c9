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
import gc
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from runpy import run_path
from typing import Any, BinaryIO, NamedTuple, TextIO

MAX_MEMORY = 2 << 30
"""Maximum address space in bytes."""

CPU_TIMEOUT = 60.0
"""Maximum processor time for one file, in seconds."""

_READ_SIZE = 256 << 10
"""Maximum bytes of one read."""

_FIRST_BOXES = set(b"ftyp styp moov moof mdat sidx emsg wide free skip junk pnot uuid udta".split())
"""Boxes that an MP4 or MOV can begin with; old MOV files have no ftyp."""

_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}
"""Codecs of cover pictures, which some programs write as a video stream of one frame."""

MAX_PIXEL_RATIO = 4.0
"""Largest ratio of the sides of a pixel that is believed; more would give a poster without end."""


_ZEROS = {
    "h264": bytes(64),
    "hevc": bytes(64),
    "mpeg4": bytes(64),
    "vp8": bytes(256),
    "vp9": bytes(256),
}
"""Zeros that no packet of a codec contains.

H.264 and HEVC escape the third consecutive zero. The other encoders wrote at most 5 for still
pictures, in sizes up to 4K. AV1 may be padded with zeros.
"""

_NEVER_ZERO = {*_ZEROS, "av1", "libdav1d", "aac", "opus", "libopus"}
"""Codecs that never write a packet of zeros only, unlike silence in PCM."""


Facts = dict[str, Any]
"""Properties of a video or picture, as in the answer to the parent process."""


class InvalidVideo(Exception):
    """File that is not a complete video."""


def examine(file: BinaryIO, makes: str | None, poster_width: int = 0) -> tuple[Facts, bytes]:
    """Describe a complete video or picture, and draw its poster.

    Args:
        file: The file; its read position changes.
        makes: ``video`` or ``picture``, or None if both are possible.
        poster_width: Width of the poster in pixels, or 0 for none.

    Raises:
        InvalidVideo: The file is not complete, or of another kind.
    """
    pictures = _sibling("pictures.py")
    kind = pictures["kind_of"](file) if makes != "video" else None
    if kind is None and makes != "picture":
        return examine_video(file, poster_width)
    if kind is None:
        file.seek(0)
        head = file.read(12)
        raise InvalidVideo(f"the output is not a PNG, JPEG or WebP; it begins with {head!r}")
    try:
        picture = pictures["decode"](file, kind)
        facts = {"width": picture.width, "height": picture.height}
        facts |= {"duration": 0.0, "frames": 1, "codec": kind}
        return facts, _poster_of(picture, poster_width) if poster_width else b""
    except ValueError as error:
        raise InvalidVideo(str(error)) from None


def examine_video(video: BinaryIO, poster_width: int = 0) -> tuple[Facts, bytes]:
    """Demux a video to its end, describe it, and draw a poster from its middle.

    Args:
        video: The file; its read position changes.
        poster_width: Width of the poster in pixels, or 0 for none.

    Returns:
        Width and height in pixels, duration in seconds, number of frames and codec; and a JPEG.

    Raises:
        InvalidVideo: It is not an MP4, MOV or WebM, has no video, is not complete, or its poster
            cannot be drawn.
    """
    from av.error import FFmpegError

    try:
        kind = _container(video)
        end = _sibling("truncation.py")["find_end"](video, kind)
        size = video.seek(0, os.SEEK_END)
        _require_bytes(size, end.byte)
        is_stated = kind == "mp4" and not end.open
        with _open_container(video, kind, decodes=not (is_stated and poster_width)) as container:
            films = _films(container)
            tracks = _demux(container)
            stream = _film(films, tracks)
            if stream.codec_context is None:
                raise InvalidVideo("the output has a video stream with an unknown codec")
            film = tracks.get(stream.index, _Track())
            if kind == "mp4":
                _require_bytes(size, _end_of_samples(container))
            if end.open:
                _require_seconds(tracks, film, end.seconds or _stated_seconds(container, kind))
            if not film.starts:
                raise InvalidVideo("the output is truncated: it has no frames")
            if not poster_width:
                return _facts(stream, film, stream), b""
            frame, poster = _draw(container, stream, film, poster_width)
            return _facts(stream, film, frame), poster
    except (FFmpegError, ValueError, EOFError) as error:
        raise InvalidVideo(f"the output is not a readable video: {_reason(error)}") from None


def _facts(stream: Any, film: "_Track", sized: Any) -> Facts:
    """Describe a film that has the size of its stream, or of one of its frames.

    Raises:
        InvalidVideo: It has no size.
    """
    if not (sized.width and sized.height):
        raise InvalidVideo("the output's frames have no size")
    return {
        "width": sized.width,
        "height": sized.height,
        "duration": round(film.duration(), 3),
        "frames": len(film.starts),
        "codec": stream.codec_context.name,
    }


@dataclass
class _Track:
    """Packets of a stream that are shown: their starts, and the end of the last one, in ticks.

    Ticks are integers. Fractions of seconds would take longer than the demuxing itself.

    Attributes:
        tick: Seconds of a tick.
        middle: Middle of the film.
        key_frame: Packet with the last key frame before the middle, or with the first one.
    """

    tick: Fraction = Fraction(1)
    middle: int = 0
    starts: list[int] = field(default_factory=list)
    end: int = 0
    key_frame: Any = None

    def duration(self) -> float:
        """Return the seconds from the first start, which need not be zero, to the end."""
        return float((self.end - min(self.starts, default=0)) * self.tick)


def _demux(container: Any) -> dict[int, _Track]:
    """Read every packet, and return the tracks by the index of their stream.

    Raises:
        InvalidVideo: A packet is incomplete or filled with zeros.
    """
    tracks: dict[int, _Track] = {}
    codecs = {stream.index: _codec_without_zeros(stream) for stream in container.streams}
    middle = Fraction((container.start_time or 0) + (container.duration or 0) // 2, 1_000_000)
    for packet in container.demux():
        index, size, start = packet.stream_index, packet.size, packet.pts
        codec = codecs[index]
        if packet.is_corrupt or (codec and size and _has_zeroed_data(packet, codec)):
            raise InvalidVideo(
                f"the output is truncated: the packet at byte {packet.pos:,} is incomplete"
            )
        track = tracks.get(index)
        tick = track.tick if track else packet.time_base  # PyAV makes it anew, which takes long
        is_shown = size and not packet.is_discard  # an edit list may leave some out
        if start is None or not is_shown or tick is None:
            continue
        if track is None:
            track = tracks[index] = _Track(tick, int(middle / tick))
        track.starts.append(start)
        track.end = max(track.end, start + (packet.duration or 0))
        if packet.is_keyframe and (track.key_frame is None or start <= track.middle):
            track.key_frame = packet
    return tracks


def _codec_without_zeros(stream: Any) -> str | None:
    """Return the codec of a stream, or None if it may write packets of zeros."""
    context = stream.codec_context
    return context.name if context is not None and context.name in _NEVER_ZERO else None


def _has_zeroed_data(packet: Any, codec: str) -> bool:
    """Return True if a packet holds zeros where its codec writes none."""
    content = bytes(packet)
    zeros = _ZEROS.get(codec)
    return not any(content) or (zeros is not None and zeros in content)


def _require_bytes(size: int, end: int) -> None:
    if end > size:
        raise InvalidVideo(f"the output is truncated: it has {size:,} of at least {end:,} bytes")


def _require_seconds(tracks: dict[int, _Track], film: _Track, stated: float) -> None:
    """Reject a film that ends more than two frames early; the second one allows for rounding."""
    starts = sorted(film.starts)
    gap = max((later - earlier for earlier, later in pairwise(starts)), default=None)
    frame = stated if gap is None else float(gap * film.tick)
    arrived = max((float(track.end * track.tick) for track in tracks.values()), default=0.0)
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


def _draw(container: Any, stream: Any, film: _Track, width: int) -> tuple[Any, bytes]:
    """Return a frame from the middle of a film, and a JPEG of it of the given width in pixels.

    Raises:
        InvalidVideo: No frame can be decoded.
    """
    from av.error import FFmpegError

    stream.codec_context.thread_count = 1  # more threads are slower for a single frame
    try:
        frame = _decode_alone(film.key_frame) or _first_frame(container, stream)
        return frame, _poster_of(frame, width, _pixel_ratio(stream))
    except (FFmpegError, StopIteration, ValueError) as error:
        raise InvalidVideo(f"no frame of the output can be decoded: {_reason(error)}") from None


def _decode_alone(key_frame: Any) -> Any:
    """Return the frame of a packet, or None if the decoder needs others for it.

    The end after the packet makes the decoder return the frame at once. It would otherwise first
    decode the next ones, which may have to be shown earlier.
    """
    from av.error import FFmpegError

    if key_frame is None:
        return None
    try:
        context = key_frame.stream.codec_context
        return next(iter([*context.decode(key_frame), *context.decode(None)]), None)
    except FFmpegError:
        return None


def _first_frame(container: Any, stream: Any) -> Any:
    """Return the first frame of a film that can be decoded."""
    container.seek(0)
    return next(container.decode(stream))


def _pixel_ratio(stream: Any) -> float:
    """Return the width of a pixel divided by its height."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_PIXEL_RATIO <= ratio <= MAX_PIXEL_RATIO else 1.0


class _Orientation(NamedTuple):
    """Turn of a frame before it is shown: swap its axes first, then mirror it."""

    swaps: bool = False
    mirrors_x: bool = False
    mirrors_y: bool = False


def orientation_of(matrix: bytes) -> _Orientation:
    """Return the orientation that a display matrix stands for, to the nearest right angle; pure.

    The matrix maps a point (x, y) of the frame to (a x + c y, b x + d y).
    """
    a, b, _, c, d = struct.unpack("5i", matrix[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _Orientation(swaps=True, mirrors_x=c < 0, mirrors_y=b < 0)
    return _Orientation(mirrors_x=a < 0, mirrors_y=d < 0)


_QUARTERS = (
    _Orientation(),
    _Orientation(swaps=True, mirrors_y=True),
    _Orientation(mirrors_x=True, mirrors_y=True),
    _Orientation(swaps=True, mirrors_x=True),
)
"""Orientations by the number of quarter turns to the left."""


def _orientation(frame: Any) -> _Orientation:
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 cannot list the side data of a photograph, which has EXIF data
        return _QUARTERS[round(frame.rotation / 90) % 4]
    return orientation_of(bytes(matrix)) if matrix else _Orientation()


def _poster_of(frame: Any, width: int, pixel_ratio: float = 1.0) -> bytes:
    """Return a frame as a JPEG of a width, in the position and proportions in which it is shown."""
    turn = _orientation(frame)
    across, down = frame.width * pixel_ratio, float(frame.height)
    if turn.swaps:
        across, down = down, across
    size = (width, max(2, round(down * width / across / 2) * 2))
    wide, high = reversed(size) if turn.swaps else size
    small = _scaler().reformat(frame, width=wide, height=high, format="yuvj420p", threads=1)
    return as_jpeg(_turned(small, turn) if any(turn) else small)


@cache
def _scaler() -> Any:
    """Return the scaler of all posters, which keeps its tables while the sizes stay the same."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _turned(frame: Any, turn: _Orientation) -> Any:
    from av.filter import Graph

    filters = (
        ("transpose", "dir=cclock_flip", turn.swaps),
        ("hflip", "", turn.mirrors_x),
        ("vflip", "", turn.mirrors_y),
    )
    graph = Graph()
    graph.threads = 1
    chain = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
        )
    ]
    chain += [graph.add(name, arguments) for name, arguments, is_needed in filters if is_needed]
    graph.link_nodes(*chain, graph.add("buffersink")).configure()
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    chain[0].push(frame)
    return graph.vpull()


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


_UNDECODED = {"probesize": "32", "skip_frame": "all"}
"""Options of FFmpeg for a file that is opened without a decoded frame. It would otherwise decode
one to fill in what the header may lack, which takes as long as the frame of the poster."""


def _open_container(video: BinaryIO, kind: str, *, decodes: bool) -> Any:
    """Open a video.

    Args:
        video: The file; its read position changes.
        kind: Container, as FFmpeg calls it.
        decodes: True to decode a frame of each stream. The header of an MP4 with tables states
            everything but the size of a frame for certain. That of a fragmented MP4 or a WebM may
            lack the duration of a frame, too.
    """
    import av

    options = {"protocol_whitelist": "none", **({} if decodes else _UNDECODED)}
    video.seek(0)
    return av.open(video, format=kind, buffer_size=_READ_SIZE, options=options)


def _films(container: Any) -> list[Any]:
    """Return the video streams that are not marked as a cover picture.

    Raises:
        InvalidVideo: There is no such stream.
    """
    from av.stream import Disposition

    cover = Disposition.attached_pic
    found = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not found:
        raise InvalidVideo("the output contains no video")
    return found


def _film(films: Sequence[Any], tracks: dict[int, _Track]) -> Any:
    """Return the stream with the most frames; a cover may be listed first, and without a mark."""

    def weight(stream: Any) -> tuple[int, bool, int]:
        context = stream.codec_context
        is_moving = context is not None and context.name not in _PICTURE_CODECS
        frames = len(tracks[stream.index].starts) if stream.index in tracks else 0
        return frames, is_moving, context.width * context.height if context else 0

    return max(films, key=weight)


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
        gc.collect()  # PyAV's frame and its side data refer to each other, and would pile up
        _alarm_after(0)


def _answer(file: BinaryIO, question: dict[str, Any]) -> dict[str, Any]:
    try:
        if sizes := question.get("posters"):
            return {"sheet": base64.b64encode(draw_contact_sheet(file, sizes)).decode()}
        if question.get("image"):
            return {"info": inspect_image(file)}
        if question.get("manifest"):  # not with the media: it may break this process
            return {"manifest": _sibling("manifest_store.py")["read_manifest"](file)}
        makes, width = question.get("makes", "video"), question.get("poster_width", 0)
        info, poster = examine(file, makes, width)
        return {"info": info, "poster": base64.b64encode(poster).decode()}
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

    for name in (
        "confinement.py",
        "contact_sheet.py",
        "manifest_store.py",
        "pictures.py",
        "truncation.py",
    ):
        _sibling(name)


def main() -> None:
    """Run the decoder process."""
    load()
    gc.freeze()  # so that the collection after each question visits only what the question left
    _sibling("confinement.py")["confine"](MAX_MEMORY)
    serve(read_questions(), sys.stdout)


if __name__ == "__main__":  # pragma: no cover -- in its own process
    main()
