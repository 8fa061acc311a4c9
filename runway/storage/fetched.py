# SPDX-License-Identifier: Apache-2.0
"""Fetched videos between their download and their place in a storage.

A complete fetch leaves a record beside its files. A step that runs again finds it there, whichever
process runs it, and takes the files only if they are still what was checked. What is missing or
changed is fetched again, so a record can never keep a paid video from being delivered.
"""

import hashlib
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from ..errors import StagedFileMissing
from ..models.generation import FetchedVideo
from .base import Storage
from .staging import RECORD, StagedFile, is_abandoned, staged_files, staged_path


def sha256_of(path: Path) -> str | None:
    """Return the SHA-256 of a file in hex, or None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def remember(video: FetchedVideo, stem: str) -> None:
    """Write the record of a complete fetch beside its files; without it they are fetched again."""
    folder = Path(video.path).parent
    with suppress(OSError):
        new = staged_path(folder, stem, ".new")
        new.write_text(video.model_dump_json(), encoding="utf-8")
        new.replace(folder / f"{stem}{RECORD}")


def find_fetched(storage: Storage, stem: str) -> FetchedVideo | None:
    """Return what an earlier fetch left, if the video is still what was checked.

    The poster is None where it has to be drawn again. What is lost or changed is of no use any
    more, and what is left of it is deleted.

    Args:
        storage: Where the video is wanted, and may be already.
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


def publish_checked(storage: Storage, staged: Path, name: str, sha256: str | None) -> str:
    """Publish a staged file that is still what was checked, and return its URI.

    What an earlier attempt published is left as it is, if it is the same file.

    Args:
        storage: Where to.
        staged: The file.
        name: Its name there.
        sha256: What it must be, if that is known.

    Raises:
        StagedFileMissing: It is gone or changed, and must be fetched again.
        StorageError: The storage did not take it.
    """
    found = sha256_of(staged)
    if found is not None and sha256 in {found, None}:
        return storage.publish(staged, name)
    if _is_published(storage, name, sha256):
        return storage.uri(name)
    why = "is not what was fetched any more" if found else "is not on this machine any more"
    raise StagedFileMissing(f"{staged} {why}")


def discard(video: FetchedVideo, stem: str) -> None:
    """Delete what is left of a fetch whose video is stored."""
    path = Path(video.path)
    for left in (path, Path(video.poster or path), path.parent / f"{stem}{RECORD}"):
        with suppress(OSError):
            left.unlink(missing_ok=True)


def abandoned_files(folder: Path, is_needed: Callable[[str], bool]) -> list[StagedFile]:
    """Return the files in a staging folder that are certainly nobody's.

    Args:
        folder: Staging folder.
        is_needed: Whether the ledger has the generation of a stem as bought and not stored.

    Raises:
        OSError: The folder cannot be read.
    """
    found = list(staged_files(folder, _reusable(folder)))
    return [file for file in found if is_abandoned(file, needed=is_needed(file.stem))]


def remove(folder: Path, files: Collection[StagedFile]) -> int:
    """Delete staged files from a folder, and return how many were there.

    The folder is opened without following a link, and a name leads nowhere else.

    Raises:
        OSError: The folder or a file of it does not allow it.
    """
    removed = 0
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
    """Return the names of files that the records in a folder name."""
    records = [_recorded(path) for path in folder.glob(f"*{RECORD}") if not path.is_symlink()]
    paths = [path for video in records if video for path in (video.path, video.poster)]
    return {Path(path).name for path in paths if path}


def _recorded(record: Path) -> FetchedVideo | None:
    """Return the fetch that a record is about, with its files beside the record."""
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
