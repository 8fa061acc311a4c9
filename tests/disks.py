# SPDX-License-Identifier: Apache-2.0
"""Small file systems for tests, which can really run full."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path


class SmallDisk:
    """A file system in memory, mounted at a folder.

    Args:
        folder: Mount point; an existing, empty folder.
        kilobytes: Size of the file system.

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
        """Fill the disk until no further page fits."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    def make_room(self) -> None:
        """Free the space that `fill` used."""
        self._ballast.unlink()

    def only_read(self, yes: bool) -> None:
        """Make the disk read-only or writable; no file may be open for writing."""
        assert self._mounted(f"remount,{'ro' if yes else 'rw'}")

    def used(self) -> int:
        """Return the used space in kilobytes."""
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize >> 10

    def resize(self, kilobytes: int) -> bool:
        """Change the size of the disk; return False if more is already in use."""
        return self._mounted(f"remount,size={kilobytes}k")

    def remove(self) -> None:
        """Unmount the disk, even while processes use it."""
        subprocess.run(
            ["umount", "-l", str(self.folder)], capture_output=True, timeout=30, check=False
        )

    def _mounted(self, options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0
