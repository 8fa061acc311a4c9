# SPDX-License-Identifier: Apache-2.0
"""Fetched videos between their download and their publication in a storage.

A complete fetch leaves a record beside its files. When a step runs again, in this process or in
another one on the machine, it finds the record. It uses the files only if their hashes still match.
Missing or changed files are fetched again, so a record never prevents the delivery of a paid video.

A file whose stamp is unchanged is neither read again to compare its hash nor flushed again.
"""

import hashlib
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from ..errors import StagedFileMissing
from ..models.generation import FetchedVideo
from ..processes import this_process
from .base import Storage
from .staging import RECORD, StagedFile, is_abandoned, staged_files, staged_path

TIME_STEP = 10_000_000
"""Nanoseconds between two different times of a write at most. Linux takes them from a clock that
advances every 1 to 10 ms. FAT and exFAT keep multiples of 2 s and 10 ms."""

_FRACTION = 1_000
"""Nanoseconds after a multiple of TIME_STEP, which only a precise file system keeps. Windows keeps
multiples of 100 ns."""


def sha256_of(path: Path) -> str | None:
    """Return the SHA-256 of a file in hex, or None if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def stamp(path: Path) -> str | None:
    """Set the time of a file to one that no later write sets, and return the state of the file.

    The state changes whenever the file is written to or replaced, even at once: the time is a
    little past, and a write sets a later one. Only a program that restores the time within
    ``TIME_STEP`` would hide its change. The state is None if the file is gone, or if its file
    system rounds times.
    """
    time_ = (time.time_ns() // TIME_STEP - 2) * TIME_STEP + _FRACTION
    try:
        os.utime(path, ns=(time_, time_))
        found = path.stat()
    except OSError:
        return None
    return _state(found) if found.st_mtime_ns == time_ else None


def stamp_of(path: Path) -> str | None:
    """Return the state of a file, to compare it with an earlier stamp, or None if it is gone."""
    try:
        return _state(path.stat())
    except OSError:
        return None


def _state(found: os.stat_result) -> str:
    """Return the state of a file of this process.

    The identity of the process is in it, so that no other process compares it after a restart or on
    another machine.
    """
    identity = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return ":".join(map(str, [this_process(), *identity]))


def remember(video: FetchedVideo, stem: str) -> None:
    """Write the record of a complete fetch beside its files.

    Errors are ignored: without a record, the files are fetched again.
    """
    folder = Path(video.path).parent
    with suppress(OSError):
        new = staged_path(folder, stem, ".new")
        new.write_text(video.model_dump_json(), encoding="utf-8")
        new.replace(folder / f"{stem}{RECORD}")


def find_fetched(storage: Storage, stem: str) -> FetchedVideo | None:
    """Return the files of an earlier fetch, if the hash of the video still matches.

    The poster is None if it has to be drawn again. If the video is lost or changed, the remaining
    files of the fetch are deleted.

    Args:
        storage: Storage that receives the video, and may already have it.
        stem: Name of the video without its suffix.
    """
    folder = storage.staging()
    video = _recorded(folder / f"{stem}{RECORD}")
    if video is None:
        return None
    path, poster = Path(video.path), Path(video.poster) if video.poster else None
    is_here = sha256_of(path) == video.sha256
    is_there = not is_here and _is_published(storage, f"{stem}{path.suffix}", video.sha256)
    has_poster = poster is not None and (
        sha256_of(poster) == video.poster_sha256
        or _is_published(storage, f"{stem}{poster.suffix}", video.poster_sha256)
    )
    if not is_here and not (is_there and has_poster):
        discard(video, stem)
        return None
    for used in (path, poster, folder / f"{stem}{RECORD}"):
        with suppress(OSError):
            if used:
                os.utime(used)
    return video if has_poster else video.model_copy(update={"poster": None})


def publish_checked(
    storage: Storage, staged: Path, name: str, sha256: str | None, stamp: str | None = None
) -> str:
    """Publish a staged file whose stamp or hash still matches, and return its URI.

    If the staged file is gone or changed, but an earlier attempt published the expected file, that
    one stays and its URI is returned. Another file of the video has to be published next.

    Args:
        storage: Storage that receives the file.
        staged: Path of the staged file.
        name: Name of the file in the storage.
        sha256: Expected SHA-256 in hex, or None if it is not known.
        stamp: Stamp of the file when its hash was computed, or None to compare the hash.

    Raises:
        StagedFileMissing: The staged file is gone or changed, and must be fetched again.
        StorageError: The storage rejected the file.
    """
    if stamp is not None and stamp == stamp_of(staged):
        # The download has flushed it, and nothing has written to it since.
        return storage.publish(staged, name, more=True, flushed=True)
    found = sha256_of(staged)
    if found is not None and sha256 in {found, None}:
        return storage.publish(staged, name, more=True)
    if _is_published(storage, name, sha256):
        return storage.uri(name)
    why = "has changed since it was fetched" if found else "no longer exists on this machine"
    raise StagedFileMissing(f"{staged} {why}")


def discard(video: FetchedVideo, stem: str) -> None:
    """Delete the remaining files of a fetch and its record."""
    path = Path(video.path)
    for left in (path, Path(video.poster or path), path.parent / f"{stem}{RECORD}"):
        with suppress(OSError):
            left.unlink(missing_ok=True)


def abandoned_files(folder: Path, is_needed: Callable[[str], bool]) -> list[StagedFile]:
    """Return the files in a staging folder that no run can still need.

    Args:
        folder: Staging folder.
        is_needed: Returns True if the ledger records the generation of a stem as bought and not
            stored.

    Raises:
        OSError: The folder cannot be read.
    """
    found = list(staged_files(folder, _reusable(folder)))
    return [file for file in found if is_abandoned(file, needed=is_needed(file.stem))]


def remove(folder: Path, files: Collection[StagedFile]) -> int:
    """Delete staged files from a folder, and return the number of deleted files.

    The folder is opened without following a symbolic link, and each name is deleted relative to it.
    So nothing outside the folder can be deleted. Windows cannot open folders.

    Raises:
        OSError: The folder cannot be opened, or a file cannot be deleted.
    """
    removed = 0
    if os.unlink not in os.supports_dir_fd or not hasattr(os, "O_DIRECTORY"):
        for file in files:
            with suppress(FileNotFoundError):
                (folder / file.name).unlink()
                removed += 1
        return removed
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for file in files:
            with suppress(FileNotFoundError):
                os.unlink(file.name, dir_fd=opened)
                removed += 1
    finally:
        os.close(opened)
    return removed


def _reusable(folder: Path) -> set[str]:
    """Return the names of the files that the records in a folder refer to."""
    records = [_recorded(path) for path in folder.glob(f"*{RECORD}") if not path.is_symlink()]
    paths = [path for video in records if video for path in (video.path, video.poster)]
    return {Path(path).name for path in paths if path}


def _recorded(record: Path) -> FetchedVideo | None:
    """Return the fetch in a record, or None if the record cannot be read.

    The paths of its files are replaced by paths in the folder of the record.
    """
    try:
        video = FetchedVideo.model_validate_json(record.read_bytes())
    except (OSError, ValidationError):
        return None
    beside = {"path": str(record.parent / Path(video.path).name)}
    if video.poster:
        beside["poster"] = str(record.parent / Path(video.poster).name)
    return video.model_copy(update=beside)


def _is_published(storage: Storage, name: str, sha256: str | None) -> bool:
    return sha256 is not None and storage.sha256(name) == sha256
