# SPDX-License-Identifier: Apache-2.0
"""Marks of the progress of a ledger, which are stored outside the ledger.

A ledger is a file or a database that people copy, move and restore. A ledger that was restored from
an older copy lacks purchases, and would buy their idempotency keys again. So each storage keeps a
small JSON file for each ledger that stored videos there, and a SQLite ledger has one beside its
file. The mark contains the identity of the ledger and the serial of the newest claim that was seen.
A ledger whose own serial is lower has lost claims. A second identity in one storage means that two
ledgers are in use, and neither knows the purchases of the other.
"""

import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from pydantic import AwareDatetime, Field, ValidationError

from ..errors import StorageError
from ..models.generation import FrozenModel
from ..storage.base import Storage, publish_written

FOLDER = ".cometapi-ledgers"
"""Folder in a storage with a mark for each ledger."""

STALE = timedelta(days=7)
"""Age after which the ledger of another mark counts as no longer in use."""

_MOST = 32
"""Maximum number of marks that are read from one storage."""


class LedgerMark(FrozenModel):
    """Progress of a ledger at a point in time."""

    identity: str = Field(
        max_length=64, pattern="^[0-9a-f]+$", description="Identity of the ledger."
    )
    serial: int = Field(ge=0, description="Serial of its newest claim.")
    location: str = Field(
        default="", max_length=500, description="URL of the ledger, without secrets."
    )
    host: str = Field(default="", max_length=200, description="Machine that wrote the mark.")
    written_at: AwareDatetime = Field(description="Time at which the mark was written.")

    @classmethod
    def of(cls, identity: str, serial: int, location: str) -> "LedgerMark":
        """Return the mark of a ledger with this machine and the current time."""
        return cls(
            identity=identity,
            serial=serial,
            location=location[:500],
            host=socket.gethostname()[:200],
            written_at=datetime.now(UTC),
        )


def highest_serial(marks: Iterable[LedgerMark], identity: str) -> int:
    """Return the highest serial of a ledger among the marks, or 0; pure."""
    return max((mark.serial for mark in marks if mark.identity == identity), default=0)


def ledgers_in_use(
    marks: Iterable[LedgerMark], identity: str, now: datetime | None = None
) -> list[LedgerMark]:
    """Return the marks of other ledgers that are newer than ``STALE``, newest first; pure."""
    since = (now or datetime.now(UTC)) - STALE
    others = [mark for mark in marks if mark.identity != identity and mark.written_at >= since]
    return sorted(others, key=lambda mark: mark.written_at, reverse=True)


def read_marks(storage: Storage, identity: str) -> list[LedgerMark]:
    """Return the marks in a storage.

    A storage that cannot list its files returns the mark of this ledger only. A storage that does
    not answer returns none; another check reports that it cannot be used.
    """
    own = f"{identity}.json"
    try:
        names = storage.names(FOLDER)
    except StorageError:
        names = None
    wanted = [own] if names is None else [own, *(name for name in names if name != own)][:_MOST]
    found: list[LedgerMark] = []
    for name in wanted:
        with suppress(StorageError, ValidationError):
            if names is None or name in names:
                found.append(LedgerMark.model_validate_json(storage.read(f"{FOLDER}/{name}")))
    return found


def write_mark(storage: Storage, mark: LedgerMark) -> None:
    """Write the mark of a ledger into a storage, replacing its earlier mark.

    Raises:
        StorageError: The storage rejected the mark.
    """
    publish_written(
        storage,
        f"{FOLDER}/{mark.identity}.json",
        lambda staged: staged.write_text(mark.model_dump_json(), encoding="utf-8"),
    )


class MarkFile:
    """Mark beside a SQLite ledger, in the file ``NAME.mark``.

    The file is not flushed to disk: a mark that is older than the ledger only protects less.
    """

    def __init__(self, ledger: Path) -> None:
        self.path = ledger.with_name(f"{ledger.name}.mark")

    def read(self) -> LedgerMark | None:
        """Return the mark, or None if it is missing or unreadable."""
        with suppress(OSError, ValidationError, ValueError):
            return LedgerMark.model_validate(json.loads(self.path.read_text(encoding="utf-8")))
        return None

    def write(self, mark: LedgerMark) -> None:
        """Write the mark; errors of the file system are ignored."""
        part = self.path.with_name(f"{self.path.name}.{uuid4().hex[:8]}.part")
        with suppress(OSError):
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(mark.model_dump_json())
                part.replace(self.path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
