# SPDX-License-Identifier: Apache-2.0
"""Clips for the tests, each of two seconds, 64 by 48 pixels, 24 frames a second."""

import io
import itertools
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import av
from av.filter import Graph


def _frames(count: int) -> list[Any]:
    graph = Graph()
    drawing = f"size=64x48:rate=24:duration={count / 24}"
    chain = [
        graph.add("testsrc2", drawing),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    chain[0].link_to(chain[1])
    chain[1].link_to(chain[2])
    graph.configure()
    return [graph.vpull() for _ in range(count)]


def _write_clip(target: Any, codec: str, container: str, **options: str) -> None:
    with av.open(target, "w", format=container, options=options) as output:
        stream: Any = output.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, frame in enumerate(_frames(48)):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _write_sound(target: str) -> None:
    graph = Graph()
    chain = [
        graph.add("sine", "duration=0.5:sample_rate=44100"),
        graph.add("aformat", "sample_fmts=fltp:channel_layouts=mono"),
        graph.add("abuffersink"),
    ]
    chain[0].link_to(chain[1])
    chain[1].link_to(chain[2])
    graph.configure()
    with av.open(target, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=44100)
        for _ in range(10):
            output.mux(stream.encode(graph.pull()))
        output.mux(stream.encode(None))


def _write_clip_with_longer_sound(target: str) -> None:
    """Write a WebM whose only stated length is that of its sound: three seconds."""
    graph = Graph()
    chain = [
        graph.add("sine", "duration=3:sample_rate=48000"),
        graph.add("aformat", "sample_fmts=s16:channel_layouts=mono"),
        graph.add("asetnsamples", "n=960"),
        graph.add("abuffersink"),
    ]
    for one, next_ in itertools.pairwise(chain):
        one.link_to(next_)
    graph.configure()
    with av.open(target, "w", format="webm") as output:
        video: Any = output.add_stream("libvpx", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = output.add_stream("libopus", rate=48000)
        for number, frame in enumerate(_frames(48)):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        for _ in range(150):
            output.mux(sound.encode(graph.pull()))
        output.mux(sound.encode(None))


def _write_subtitled(target: str) -> None:
    """Write a clip with subtitles; PyAV imports its code for them only when it reads some."""
    with av.open(target, "w", format="mp4") as output:
        video: Any = output.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        words: Any = output.add_stream("mov_text")
        words.codec_context.subtitle_header = b"[V4+ Styles]\nStyle: Default,Arial,16\n"
        for number, frame in enumerate(_frames(48)):
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        word = av.Packet(b"\0\5hello")
        word.stream, word.time_base = words, Fraction(1, 1000)
        word.pts = word.dts = 0
        word.duration = 1000
        output.mux(word)


class _Pipe(io.RawIOBase):
    """An output that cannot be rewound, so that the header of a file never gets its length."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.content += bytes(data)
        return len(data)


def _without_size(clip: bytes) -> bytes:
    """Return the clip without the frame size in the header and in the codec's parameters."""
    broken = bytearray(clip)
    entry = clip.index(b"avc1", clip.index(b"stsd")) + 28
    broken[entry : entry + 4] = bytes(4)
    parameters = clip.index(b"avcC") + 4
    broken[parameters : parameters + 26] = bytes(26)
    return bytes(broken)


def turned(clip: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """Return an MP4 whose first track is shown through a matrix: x to ax + cy, y to bx + dy."""
    at = clip.index(b"tkhd") + 44
    numbers = [round(65536 * number) for number in (a, b, 0, c, d, 0, 0, 0)]
    return clip[:at] + struct.pack(">9i", *numbers, 1 << 30) + clip[at + 36 :]


def write_clips(folder: Path) -> None:
    """Write good clips and bad ones."""
    _write_clip(str(folder / "clip.mp4"), "libx264", "mp4", movflags="+faststart")
    _write_clip(str(folder / "index-last.mp4"), "libx264", "mp4")
    _write_clip(str(folder / "clip.mov"), "libx264", "mov")
    _write_clip(str(folder / "clip.webm"), "libvpx", "webm")
    live = _Pipe()
    _write_clip(live, "libvpx", "webm")
    (folder / "live.webm").write_bytes(bytes(live.content))
    _write_subtitled(str(folder / "subtitled.mp4"))
    _write_sound(str(folder / "sound.mp4"))
    _write_clip_with_longer_sound(str(folder / "sound.webm"))
    clip = (folder / "clip.mp4").read_bytes()
    (folder / "unknown-codec.mp4").write_bytes(clip.replace(b"avc1", b"zzzz"))
    (folder / "no-size.mp4").write_bytes(_without_size(clip))
    (folder / "turned.mp4").write_bytes(turned(clip, 0, 1, -1, 0))


_SMALL = {"cluster_size_limit": "2000"}
_FRAGMENTS = "+frag_keyframe+empty_moov"
_AAC, _OPUS, _PCM = ("aac", 44100), ("libopus", 48000), ("pcm_s16le", 44100)

FILMS: dict[str, dict[str, Any]] = {
    "index first.mp4": {"movflags": "+faststart"},
    "index last.mp4": {},
    "no B-frames.mp4": {"encoder": {"bf": "0"}},
    "no edit list.mp4": {"use_editlist": "0"},
    "negative offsets.mp4": {"movflags": "+faststart+negative_cts_offsets"},
    "uneven.mp4": {"uneven": True},
    "one frame.mp4": {"frames": 1},
    "film.mov": {},
    "silence.mov": {"sound": _PCM, "silent": True},
    "sound.mp4": {"sound": _AAC, "movflags": "+faststart"},
    "longer sound.mp4": {"sound": _AAC, "seconds": 3},
    "shorter sound.mp4": {"sound": _AAC, "seconds": 1, "movflags": "+faststart"},
    "hevc.mp4": {"codec": "libx265", "movflags": "+faststart"},
    "av1.mp4": {"codec": "libsvtav1", "encoder": {"preset": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "vp9.mp4": {"codec": "libvpx-vp9"},
    "fragments.mp4": {"movflags": _FRAGMENTS},
    "fragments with sound.mp4": {"movflags": _FRAGMENTS, "sound": _AAC},
    "fragments of one base.mp4": {"movflags": _FRAGMENTS + "+default_base_moof"},
    "fragments after the first.mp4": {"movflags": "+frag_keyframe"},
    "fragments with an index.mp4": {"movflags": _FRAGMENTS + "+global_sidx"},
    "fragments with indexes.mp4": {"movflags": _FRAGMENTS + "+dash", "pipe": True},
    "fragments without an end.mp4": {"movflags": _FRAGMENTS + "+skip_trailer", "pipe": True},
    "uneven fragments.mp4": {"movflags": _FRAGMENTS, "uneven": True},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hidden frames.webm": {"codec": "libvpx-vp9", "encoder": {"auto-alt-ref": "1"}},
    "av1.webm": {"codec": "libsvtav1", "encoder": {"preset": "12"}},
    "index in front.webm": {"codec": "libvpx", "cues_to_front": "1"},
    "room for an index.webm": {"codec": "libvpx", "reserve_index_space": "4096"},
    "small clusters.webm": {"codec": "libvpx", **_SMALL},
    "sound.webm": {"codec": "libvpx", "sound": _OPUS},
    "longer sound.webm": {"codec": "libvpx", "sound": _OPUS, "seconds": 3, **_SMALL},
    "shorter sound.webm": {"codec": "libvpx", "sound": _OPUS, "seconds": 1},
    "uneven.webm": {"codec": "libvpx", "uneven": True, **_SMALL},
    "live.webm": {"codec": "libvpx", "pipe": True},
    "cover first.mp4": {"cover": True, "movflags": "+faststart"},
    "cover first.mov": {"cover": True, "sound": _AAC},
    "cover first.mkv": {"cover": True},
    "fragments after a cover.mp4": {"cover": True, "movflags": _FRAGMENTS},
    "sound first.mp4": {"sound": _AAC, "sound_first": True},
    "sound first.webm": {"codec": "libvpx", "sound": _OPUS, "sound_first": True},
    "timecode.mov": {"sound": _AAC, "tags": {"timecode": "01:00:00:00"}},
    "film.mkv": {"sound": _AAC},
    "two frames.mp4": {"frames": 2},
    "late.mp4": {"start": 240},
    "late.webm": {"codec": "libvpx", "start": 240},
    "late fragments.mp4": {"movflags": _FRAGMENTS, "start": 240},
    "wide pixels.mp4": {"pixel": Fraction(2, 1)},
    "live with sound.webm": {"codec": "libvpx-vp9", "sound": _OPUS, "pipe": True},
    "uneven live.webm": {"codec": "libvpx", "uneven": True, "pipe": True},
}
"""Good films and their arguments; arguments unknown to _film are options of the container."""


def film(name: str) -> bytes:
    """Write a good film and return it."""
    return _film(name.rsplit(".", maxsplit=1)[-1], **FILMS[name])


def _film(
    container: str,
    codec: str = "libx264",
    encoder: dict[str, str] | None = None,
    frames: int = 48,
    sound: tuple[str, int] | None = None,
    seconds: float = 2.0,
    *,
    uneven: bool = False,
    silent: bool = False,
    pipe: bool = False,
    cover: bool = False,
    sound_first: bool = False,
    start: int = 0,
    pixel: Fraction | None = None,
    tags: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    piped = _Pipe()
    with (
        NamedTemporaryFile() as file,
        av.open(
            piped if pipe else file.name,
            "w",
            format={"mkv": "matroska"}.get(container, container),
            options=options,
        ) as output,
    ):
        output.metadata.update(tags or {})
        picture: Any = cover and output.add_stream("mjpeg", rate=1)
        audio: Any = None
        if sound and sound_first:
            audio = output.add_stream(sound[0], rate=sound[1], layout="mono")
        video: Any = output.add_stream(codec, rate=24, options={"g": "12", **(encoder or {})})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        if pixel:
            video.codec_context.sample_aspect_ratio = pixel
        if sound and not sound_first:
            audio = output.add_stream(sound[0], rate=sound[1], layout="mono")
        if cover:
            picture.width, picture.height, picture.pix_fmt = 320, 240, "yuvj420p"
            blank = av.VideoFrame(320, 240, "yuvj420p")
            blank.pts, blank.time_base = 0, Fraction(1, 1)
            output.mux(picture.encode(blank))
            output.mux(picture.encode(None))
        packets = _tones(audio, seconds, silent=silent) if sound else iter(())
        time = start
        for number, frame in enumerate(_frames(frames)):
            frame.pts, frame.time_base = time, Fraction(1, 24)
            time += 1 + 7 * number % 5 if uneven else 1
            output.mux(video.encode(frame))
            for packet in itertools.islice(packets, 2):
                output.mux(packet)
        output.mux(video.encode(None))
        for packet in packets:
            output.mux(packet)
        output.close()
        return bytes(piped.content) if pipe else Path(file.name).read_bytes()


def _tones(audio: Any, seconds: float, *, silent: bool) -> Iterator[Any]:
    graph = Graph()
    rate = audio.codec_context.sample_rate
    samples = 960 if rate == 48000 else 1024
    chain = [
        graph.add("sine", f"duration={seconds}:sample_rate={rate}"),
        graph.add("volume", "0" if silent else "1"),
        graph.add("aformat", f"sample_fmts={audio.codec_context.format.name}"),
        graph.add("asetnsamples", f"n={samples}:p=0"),
        graph.add("abuffersink"),
    ]
    for one, next_ in itertools.pairwise(chain):
        one.link_to(next_)
    graph.configure()
    while True:
        try:
            tone = graph.pull()
        except EOFError:
            break
        yield from audio.encode(tone)
    yield from audio.encode(None)
