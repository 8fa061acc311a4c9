# SPDX-License-Identifier: Apache-2.0
"""Serve one file under every path, with ranges, as fast as the kernel can send it.

``python benchmarks/files.py BYTES`` prints the address of the server. The file is sparse, so
it takes no space on the disk.
"""

import sys
import tempfile
from typing import BinaryIO

from plain_http import Part, Request, Response, as_json, serve

from prefect_cometapi.sandbox.clips.serving import byte_range

ETAG = '"benchmark"'


class Files:
    """Responder that answers every request with the file.

    Args:
        file: The file.
        size: Its length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def answer(self, request: Request) -> Response:
        """Return the response with the file or the requested part of it."""
        if request.method not in {"GET", "HEAD"}:
            return as_json({"error": "GET it"}, 405)
        headers = {"Content-Type": "video/mp4", "ETag": ETAG, "Accept-Ranges": "bytes"}
        range_header = request.header("range")
        if range_header and (request.header("if-range") or ETAG) == ETAG:
            part = byte_range(range_header, self._size)
            if isinstance(part, tuple):
                first, last = part
                headers["Content-Range"] = f"bytes {first}-{last}/{self._size}"
                return Response(206, Part(self._file, first, last - first + 1), headers)
        return Response(200, Part(self._file, 0, self._size), headers)


def main() -> None:
    """Serve until standard input ends."""
    size = int(sys.argv[1])
    with tempfile.TemporaryFile(prefix="cometapi-benchmark-") as file:
        file.truncate(size)
        serve(Files(file, size).answer)


if __name__ == "__main__":
    main()
