# SPDX-License-Identifier: Apache-2.0
"""Staged files, which are on this machine and not published yet: folders, names and removal.

A staged file is published under the name of a paid video, so no other user may have write access to
its folder. Its name contains the process that created it. This separates the files that a killed
run left behind from those that a live run is using.
"""

import getpass
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from ..errors import StorageError
from ..processes import is_alive, is_dead, this_process
from ..redact import reason_of

INCOMING = ".incoming"
"""Staging folder inside a storage folder; ``.incoming-UID`` if another user owns the first."""

RETENTION = 7 * 24 * 3600.0
"""Seconds for which an unused staged file is kept, unless it is known that no run needs it. A run
that finds the file resets its age. The URLs of outputs expire after a day or two."""

RECORD = ".fetched.json"
"""Suffix of a record, which marks a fetch as complete and lists its files."""

_OWNED = re.compile(
    r"\.?(?P<stem>[a-z0-9-]+)\.(?P<space>[0-9a-f]{12}|0)-(?P<pid>\d+)-(?P<start>\d+)"
    r"\.[0-9a-f]{8}\.[a-z0-9]+"
)
_RECORD = re.compile(rf"(?P<stem>[a-z0-9-]+){re.escape(RECORD)}")


def staged_path(folder: Path, stem: str, suffix: str) -> Path:
    """Return a new path for a staged file, with the identity of this process in its name.

    Args:
        folder: Staging folder.
        stem: Lower-case letters, digits and dashes.
        suffix: Suffix of the file, such as ``.mp4``.
    """
    me = this_process()
    owner = f"{me.space or '0'}-{me.pid}-{me.started or '0'}"
    return folder / f"{stem}.{owner}.{uuid4().hex[:8]}{suffix}"


def temporary_staging(location: str) -> Path:
    """Return a temporary folder that belongs to this location and this user only.

    Raises:
        StorageError: The folder cannot be created, or another user can write to it.
    """
    return own_folder(own_folder(_temporary_root()) / _digest(location))


def staging_inside(folder: Path) -> Path | None:
    """Return a private staging folder inside a storage folder, or None if there cannot be one.

    If the staging folder is a link, belongs to another user or is writable by others, it stays
    unchanged and a second name is tried. Some mounted file systems show every file as owned by
    another user, so no folder on them is private.

    Raises:
        StorageError: A folder cannot be created in the storage folder.
    """
    for name in (INCOMING, f"{INCOMING}-{_account()}"):
        inside = folder / name
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o755, parents=True)
            made = _make_private(inside)
            if is_own(inside) and not (made and _lacks_rename(inside)):
                return inside
            if made:  # the file system assigns another owner, to a second one too
                with suppress(OSError):
                    inside.rmdir()
                return None
        except OSError as error:
            raise StorageError(f"{inside} cannot be created: {reason_of(error)}") from error
    return None


def own_folder(folder: Path) -> Path:
    """Create a folder that only this user can write to, inside one that every user can write to.

    Raises:
        StorageError: The folder cannot be created, or another user can write to it.
    """
    try:
        _make_private(folder)
        if is_own(folder):
            return folder
    except OSError as error:
        raise StorageError(f"{folder} cannot be created: {reason_of(error)}") from error
    raise StorageError(f"{folder} is owned or writable by another user; remove it, or set TMPDIR")


def is_own(folder: Path) -> bool:
    """Return True if a path is a folder, not a link, that only this user can write to.

    Raises:
        OSError: The path does not exist.
    """
    found = folder.lstat()
    if not hasattr(os, "getuid"):  # Windows keeps the temporary files of its users apart
        return stat.S_ISDIR(found.st_mode)
    is_private = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return stat.S_ISDIR(found.st_mode) and is_private


@dataclass(frozen=True)
class StagedFile:
    """File that a process of this package left in a staging folder.

    Attributes:
        name: Name of the file.
        stem: Name under which it would be published, without the suffix.
        age: Seconds since it was last written or used.
        reusable: True if it belongs to a complete fetch, so that another run may publish it.
        owner_runs: True if the process that created it is running, False if it has ended, None if
            that is unknown.
    """

    name: str
    stem: str
    age: float
    reusable: bool = False
    owner_runs: bool | None = None


def is_abandoned(file: StagedFile, *, needed: bool) -> bool:
    """Decide whether a staged file is certain not to be needed any more; pure.

    A file of a live process is kept. An incomplete file is useless without its process. Another run
    can publish a complete file. So a complete file is kept while its generation is not stored,
    since its URL may have expired, and for ``RETENTION`` seconds in any case.

    Args:
        file: The file.
        needed: True if the ledger records its generation as bought and not stored.
    """
    if file.owner_runs:
        return False
    if file.reusable:
        return not needed and file.age >= RETENTION
    return file.owner_runs is False or file.age >= RETENTION


def staged_files(folder: Path, reusable: Collection[str] = ()) -> Iterator[StagedFile]:
    """Yield the files in a folder that this package staged, and no other files.

    Args:
        folder: Staging folder.
        reusable: Names of the files that the records of complete fetches refer to.

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
            with suppress(FileNotFoundError):  # another run may delete it at this moment
                age = max(0.0, now - entry.stat(follow_symlinks=False).st_mtime)
                yield StagedFile(
                    entry.name,
                    named["stem"],
                    age,
                    reusable=is_record or entry.name in reusable,
                    owner_runs=None if is_record else _owner_runs(named),
                )


def temporary_stagings() -> list[Path]:
    """Return the temporary staging folders of this user, of all locations.

    Raises:
        OSError: The folders cannot be listed.
    """
    root = _temporary_root()
    if not root.exists() or not is_own(root):
        return []
    return [folder for folder in sorted(root.iterdir()) if is_own(folder)]


def _owner_runs(named: re.Match[str]) -> bool | None:
    owner = f"-:{named['pid']}:{named['space']}:{named['start']}"
    if is_alive(owner):
        return True
    return False if is_dead(owner) else None


def rename_staged(path: Path, new: Path) -> Path:
    """Rename a staged file, or copy it if its file system has no rename, and return its new path.

    Raises:
        OSError: It can be neither renamed nor copied.
    """
    if new == path:
        return path
    try:
        return path.rename(new)
    except OSError:
        shutil.copyfile(path, new)
        with suppress(OSError):
            path.unlink()
        return new


def _lacks_rename(folder: Path) -> bool:
    """Return True if files in a new folder cannot be renamed, as downloads are."""
    first, second = (staged_path(folder, "probe", suffix) for suffix in (".txt", ".new"))
    try:
        first.touch()
        first.rename(second)
    except OSError:
        return True
    finally:
        for left in (first, second):
            with suppress(OSError):
                left.unlink()
    return False


def _temporary_root() -> Path:
    try:
        root = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StorageError(
            "this machine has no writable folder for temporary files; set TMPDIR to one"
        ) from error
    return Path(root) / f"prefect-cometapi-{_user()}"


def _user() -> str:
    """Return the name of the user, or the number of one without a name, as in many containers."""
    try:
        return re.sub(r"[^\w.-]", "_", getpass.getuser())
    except (KeyError, OSError, ImportError, AttributeError):  # the last two: Windows
        return _account()


def _account() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _make_private(folder: Path) -> bool:
    """Create a folder that only this user can access; return False if the path exists."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _digest(location: str) -> str:
    return hashlib.sha256(location.encode()).hexdigest()[:12]
