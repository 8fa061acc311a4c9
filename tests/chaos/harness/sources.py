# SPDX-License-Identifier: Apache-2.0
"""Sources of generations: pictures and videos under addresses that name their idempotency key.

Requests that differ only in the address are different requests, but they share one drawn clip.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from prefect_cometapi.sandbox import AcceptedJob

from .processes import ROOT

PICTURE = ROOT / "deployments" / "commands" / "comet.jpg"


@contextmanager
def serve_file(file: Path) -> Iterator[str]:
    """Serve one file under every path; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_FileHandler, file.read_bytes()))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _FileHandler(BaseHTTPRequestHandler):
    def __init__(self, content: bytes, *args: Any) -> None:
        self._content = content
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer with the file."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self._content)))
        self.end_headers()
        self.wfile.write(self._content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
        """Log nothing."""


@contextmanager
def serve_sources(folder: Path) -> Iterator[tuple[str, str]]:
    """Serve one picture and one short video under every path; yield both addresses."""
    video = folder / "source.mp4"
    video.write_bytes(draw_clip())
    with serve_file(PICTURE) as pictures, serve_file(video) as videos:
        yield pictures, videos


def image_request(pictures: str, key: str, prompt: str = "slow zoom") -> dict[str, Any]:
    """Return a request to animate the picture of a key."""
    return {"promptImage": f"{pictures}/{quote(key, safe='')}.jpg", "promptText": prompt}


def video_request(videos: str, key: str, prompt: str = "a warm dawn") -> dict[str, Any]:
    """Return a request to restyle the video of a key."""
    return {"videoUri": f"{videos}/{quote(key, safe='')}.mp4", "promptText": prompt}


def batch_rows(pictures: str, key: str, count: int) -> list[dict[str, Any]]:
    """Return the rows of a batch."""
    ids = [f"row-{number}" for number in range(count)]
    return [{"id": id_} | image_request(pictures, f"{key}/{id_}") for id_ in ids]


def key_of(job: AcceptedJob) -> str:
    """Return the key that a job was bought for, which is in the name of its source."""
    address = job.body.get("promptImage") or job.body["videoUri"]
    return unquote(PurePosixPath(urlsplit(address).path).stem)


def draw_clip() -> bytes:
    """Return a small video to restyle: one second, 64 by 48 pixels."""
    import av
    from av.video.frame import VideoFrame

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(24):
            frame = VideoFrame(64, 48, "yuv420p")
            for plane, shade in zip(frame.planes, (40 + 6 * number, 100, 160), strict=True):
                plane.update(bytes([shade]) * plane.buffer_size)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
