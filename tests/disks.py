# SPDX-License-Identifier: Apache-2.0
"""Small file systems of the tests' own, which really are full."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path


class SmallDisk:
    """A file system in memory, mounted at a folder.

    Args:
        folder: Where; it is there, and empty.
        kilobytes: How much it holds.

    Raises:
        PermissionError: No file system can be mounted here.
    """

    def __init__(self, folder: Path, kilobytes: int) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        if not shutil.which("mount") or not self._mounted(f"size={kilobytes}k"):
            raise PermissionError(
                "no file system can be mounted (needs root and CAP_SYS_ADMIN, in Docker"
                " --privileged; apt-get install mount)"
            )

    def fill(self) -> None:
        """Leave no room for another page."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    def make_room(self) -> None:
        """Have room again."""
        self._ballast.unlink()

    def only_read(self, yes: bool) -> None:
        """Allow no writing, or allow it again; no file may be open for writing."""
        assert self._mounted(f"remount,{'ro' if yes else 'rw'}")

    def used(self) -> int:
        """Return how many kilobytes are in use."""
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize >> 10

    def resize(self, kilobytes: int) -> bool:
        """Let it hold another number of kilobytes; return False where more is in use already."""
        return self._mounted(f"remount,size={kilobytes}k")

    def remove(self) -> None:
        """Take it away, whoever still uses it."""
        subprocess.run(
            ["umount", "-l", str(self.folder)], capture_output=True, timeout=30, check=False
        )

    def _mounted(self, options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0
