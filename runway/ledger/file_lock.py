# SPDX-License-Identifier: Apache-2.0
"""A lock beside a SQLite ledger that does not depend on the ledger's own file.

SQLite locks its file in the POSIX way, and POSIX drops all locks that a process has on a file as
soon as the process closes any descriptor of it. So a process that copies the ledger (a backup, say)
while its own thread is writing lets others write at the same time, which destroys the file. A lock
of ``flock`` on a second file belongs to the descriptor, and nobody copies that file.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Windows has none, and its locks are not dropped in this way
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02
_IMPOSSIBLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class FileLock:
    """A lock that one block at a time holds, among all processes of a machine.

    Where the file system has no such locks, or lets no file be written, the block runs without:
    SQLite's own locks are there all the same.

    Args:
        ledger: The file that it guards; the lock is ``NAME.lock`` beside it.
        patience: Seconds for which another process is waited for.
    """

    def __init__(self, ledger: Path, patience: float) -> None:
        self._path = ledger.with_name(f"{ledger.name}.lock")
        self._patience = patience
        self._descriptor: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock within the block; it blocks the thread meanwhile.

        Raises:
            TimeoutError: Another process has it for longer than the patience.
        """
        has_it = self._acquire()
        try:
            yield
        finally:
            if has_it and fcntl and self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock's file; it is opened again with the next block."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _acquire(self) -> bool:
        if fcntl is None:
            return False
        end, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            try:
                if self._descriptor is None:
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    self._descriptor = os.open(self._path, flags, 0o600)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"another process holds {self._path}") from None
            except OSError as error:
                if self._descriptor is not None and error.errno not in _IMPOSSIBLE:
                    raise
                return False
            else:
                return True
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
