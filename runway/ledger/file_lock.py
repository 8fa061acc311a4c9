# SPDX-License-Identifier: Apache-2.0
"""Lock file beside a SQLite ledger, independent of the ledger's own file.

SQLite uses POSIX locks. A process loses all of its POSIX locks on a file as soon as it closes any
descriptor of that file. So if a process copies the ledger (for a backup, say) while its own thread
is writing, other processes can write at the same time and destroy the file. A ``flock`` lock on a
second file belongs to its descriptor, and nobody copies that file.
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

# Windows has no fcntl, and does not need it: closing a descriptor drops no other locks there.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02
_IMPOSSIBLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class FileLock:
    """Lock that one block at a time can hold, across all processes of a machine.

    If the file system has no such locks, or the lock file cannot be created, the block runs without
    the lock. SQLite's own locks still apply.

    Args:
        ledger: File that the lock guards; the lock file is ``NAME.lock`` beside it.
        retry_timeout: Maximum seconds to wait for another process.
    """

    def __init__(self, ledger: Path, retry_timeout: float) -> None:
        self._path = ledger.with_name(f"{ledger.name}.lock")
        self._timeout = retry_timeout
        self._descriptor: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock while the block runs; waiting for it blocks the thread.

        Raises:
            TimeoutError: Another process held the lock for longer than ``retry_timeout``.
        """
        has_it = self._acquire()
        try:
            yield
        finally:
            if has_it and fcntl and self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file; the next block opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _acquire(self) -> bool:
        if fcntl is None:
            return False
        end, pause = time.monotonic() + self._timeout, _FIRST_PAUSE
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
