# SPDX-License-Identifier: Apache-2.0
"""Append-only files of JSON lines, which several processes write and one reads."""

import json
import os
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Journal:
    """One file of JSON lines.

    Each line is one write to a file that is opened for appending, so lines of several processes
    do not mix.

    Args:
        path: The file; the first line creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def write(self, what: str, **values: Any) -> None:
        """Append one line with the time."""
        line = json.dumps({"what": what, "at": time.time(), **values}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[Line]:
        """Return every line."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def new_lines(self) -> list[Line]:
        """Return the lines that no earlier call returned."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
