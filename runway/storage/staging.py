# SPDX-License-Identifier: Apache-2.0
"""Files on this machine that are not published yet: their folders, their names, their removal.

A staged file is published under the name of a paid video, so nobody else may write where it lies.
Its own name says which process made it. That tells what a killed run left behind from what a
living one is using.
"""

import getpass
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from ..errors import StorageError
from ..processes import is_certainly_gone, is_certainly_there, this_process
from ..redact import scrub

INCOMING = ".incoming"
"""Staging folder inside a storage folder; ``.incoming-UID`` where another user has that one."""

KEEP = 7 * 24 * 3600.0
"""Seconds for which an unused staged file is kept, where nothing says that nobody needs it. A run
that uses it counts as a use, and the addresses of outputs expire after a day or two."""

RECORD = ".fetched.json"
"""End of the name of a record, which says that a fetch is complete and which files it left."""

_OWNED = re.compile(
    r"\.?(?P<stem>[a-z0-9-]+)\.(?P<space>[0-9a-f]{12}|0)-(?P<pid>\d+)-(?P<start>\d+)"
    r"\.[0-9a-f]{8}\.[a-z0-9]+"
)
_RECORD = re.compile(rf"(?P<stem>[a-z0-9-]+){re.escape(RECORD)}")


def staged_path(folder: Path, stem: str, suffix: str) -> Path:
    """Return a new path for a staged file, whose name tells which process made it.

    Args:
        folder: Staging folder.
        stem: Lower-case letters, digits and dashes.
        suffix: As ``.mp4``.
    """
    me = this_process()
    owner = f"{me.space or '0'}-{me.pid}-{me.started or '0'}"
    return folder / f"{stem}.{owner}.{uuid4().hex[:8]}{suffix}"


def temporary_staging(location: str) -> Path:
    """Return a folder for temporary files that belongs to this location and this user alone.

    Raises:
        StorageError: It cannot be made, or somebody else prepared it.
    """
    return own_folder(own_folder(_temporary_root()) / _digest(location))


def staging_inside(folder: Path) -> Path | None:
    """Return a staging folder inside a storage folder, or None where none is this user's alone.

    A staging folder of another user, a link, or one that others may write to is left as it is, and
    a second name is tried. Some mounted file systems show everything as somebody else's.

    Raises:
        StorageError: The storage folder does not take a folder.
    """
    for name in (INCOMING, f"{INCOMING}-{os.getuid()}"):
        inside = folder / name
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o755, parents=True)
            made = _make_private(inside)
            if is_own(inside):
                return inside
            if made:  # the file system gives it to another user, so a second one is no better
                inside.rmdir()
                return None
        except OSError as error:
            raise StorageError(f"{inside} cannot be made: {_reason(error)}") from error
    return None


def own_folder(folder: Path) -> Path:
    """Make a folder that nobody else can write to, in a place where everybody can.

    Raises:
        StorageError: It cannot be made, or somebody else prepared it.
    """
    try:
        _make_private(folder)
        if is_own(folder):
            return folder
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {_reason(error)}") from error
    raise StorageError(f"{folder} is not this user's alone; remove it, or set TMPDIR")


def is_own(folder: Path) -> bool:
    """Return whether a path is a folder, and no link, that this user alone can write to.

    Raises:
        OSError: There is nothing.
    """
    found = folder.lstat()
    is_private = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return stat.S_ISDIR(found.st_mode) and is_private


@dataclass(frozen=True)
class StagedFile:
    """A file that a process of this package left in a staging folder.

    Attributes:
        name: Its name.
        stem: Name under which it would be published, without the suffix.
        age: Seconds since it was last written or used.
        reusable: Whether a complete fetch left it, so that another run may publish it.
        owner_runs: Whether the process that made it runs, or None where that cannot be known.
    """

    name: str
    stem: str
    age: float
    reusable: bool = False
    owner_runs: bool | None = None


def is_abandoned(file: StagedFile, *, needed: bool) -> bool:
    """Decide whether a staged file is certainly nobody's; pure.

    What a living process made is kept. Half a file is useless without its process. A complete one
    may be published by another run: it is kept while its generation is not stored, since its
    address may have expired, and for some days in any case.

    Args:
        file: The file.
        needed: Whether the ledger has its generation as bought and not stored.
    """
    if file.owner_runs:
        return False
    if file.reusable:
        return not needed and file.age >= KEEP
    return file.owner_runs is False or file.age >= KEEP


def staged_files(folder: Path, reusable: Collection[str] = ()) -> Iterator[StagedFile]:
    """Yield the files in a folder that this package staged, and no others.

    Args:
        folder: Staging folder.
        reusable: Names that the records of complete fetches name.

    Raises:
        OSError: The folder cannot be read.
    """
    now = time.time()
    with os.scandir(folder) as entries:
        for entry in entries:
            named = _RECORD.fullmatch(entry.name) or _OWNED.fullmatch(entry.name)
            if named is None or not entry.is_file(follow_symlinks=False):
                continue
            is_record = named.re is _RECORD
            with suppress(FileNotFoundError):  # another run may be done with it just now
                age = max(0.0, now - entry.stat(follow_symlinks=False).st_mtime)
                yield StagedFile(
                    entry.name,
                    named["stem"],
                    age,
                    reusable=is_record or entry.name in reusable,
                    owner_runs=None if is_record else _owner_runs(named),
                )


def temporary_stagings() -> list[Path]:
    """Return this user's staging folders among the temporary files, of all locations.

    Raises:
        OSError: They cannot be listed.
    """
    root = _temporary_root()
    if not root.exists() or not is_own(root):
        return []
    return [folder for folder in sorted(root.iterdir()) if is_own(folder)]


def _owner_runs(named: re.Match[str]) -> bool | None:
    holder = f"-:{named['pid']}:{named['space']}:{named['start']}"
    if is_certainly_there(holder):
        return True
    return False if is_certainly_gone(holder) else None


def _temporary_root() -> Path:
    return Path(tempfile.gettempdir()) / f"prefect-cometapi-{getpass.getuser()}"


def _make_private(folder: Path) -> bool:
    """Make a folder for this user alone; gives whether it was not there before."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _digest(location: str) -> str:
    return hashlib.sha256(location.encode()).hexdigest()[:12]


def _reason(error: OSError) -> str:
    return scrub(error.strerror or type(error).__name__)
