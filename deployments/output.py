# SPDX-License-Identifier: Apache-2.0
"""Standard output and standard error that never end a command.

Output comes after the work: a character that the terminal cannot show, a closed pipe or a full disk
must not turn a purchase that succeeded into a failed command, which a user would run again.
"""

import io
import os
import sys
from contextlib import suppress
from typing import Literal, TextIO

_PLAIN = str.maketrans({"✓": "ok", "✗": "x", "…": "...", "→": "->"})
"""Replacements for the commands' own symbols in an encoding that lacks one of them."""


class Output(io.TextIOBase):
    """Text stream that writes to ``sys.stdout`` or ``sys.stderr`` and never fails.

    Characters that the stream cannot encode are replaced or written as escapes. After the first
    failed write, for example to a closed pipe, the rest is dropped. The stream is looked up at each
    write, since other code may replace it.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    @property
    def _stream(self) -> TextIO | None:
        """Return the current stream; a process without a terminal may have none.

        While rich shows a progress bar in a terminal, it puts a stream of its own in this place,
        which prints through the console, and so through this stream again.
        """
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the encoding of the stream, from which rich chooses its characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        stream = self._stream
        return bool(stream and not stream.closed and stream.isatty())

    def fileno(self) -> int:
        """Return the number of the file behind the stream, from which rich takes the width."""
        if (stream := self._stream) is None:
            raise io.UnsupportedOperation("there is no stream")
        return stream.fileno()

    def writable(self) -> bool:
        """Return True: a write never fails."""
        return True

    def write(self, text: str, /) -> int:
        """Write what the stream can take, and return the length of the whole text."""
        if stream := self._stream:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                plain = text.translate(_PLAIN).encode(self.encoding, "backslashreplace")
                self._attempt(stream, plain.decode(self.encoding))
            except (OSError, ValueError):
                self._give_up(stream)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; drop what cannot be written."""
        if stream := self._stream:
            self._attempt(stream, "")

    def _attempt(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            self._give_up(stream)

    def _give_up(self, stream: TextIO) -> None:
        """Send the rest to nowhere, also what Python flushes when the process ends."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def fill_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the next file or socket gets its number, and a child process, such as Prefect's
    server, writes into it or fails without it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one, since all below it are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003


OUTPUT = Output("stdout")
ERRORS = Output("stderr")
