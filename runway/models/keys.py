# SPDX-License-Identifier: Apache-2.0
"""Keys of generations, and the names of the files they end in."""

import base64
import hashlib
import re
import unicodedata
from datetime import UTC, datetime

from ..redact import hide_secrets
from .requests import GenerationRequest

MAX_KEY_LENGTH = 512
_UUID = re.compile(
    r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(-[0-9a-f]{16})?\b"
)
_DOCUMENTED_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|task_[0-9a-z]{8,}",
    re.IGNORECASE,
)
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+~@-]{0,199}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


def default_key(run_id: object, request: GenerationRequest, take: int = 1) -> str:
    """The key of a request made by one run: the same however often that run is retried.

    Args:
        run_id: The run.
        request: What it asks for.
        take: Which of several videos of the same request in the same run.
    """
    key = f"run-{run_id}-{request.fingerprint()[:16]}"
    return key if take == 1 else f"{key}-take-{take}"


def check_key(key: str) -> str:
    """A user's own key as it is.

    Raises:
        ValueError: It is empty, overlong, begins or ends with a blank, contains control
            characters, or holds a secret.
    """
    if hide_secrets(key) != key:
        raise ValueError(
            "a key is shown in many places, so it may hold no API key, data URI or query of a URL"
        )
    if key.strip() != key and key.strip() and len(key) <= MAX_KEY_LENGTH:
        raise ValueError(f"a key has no blanks around it, but this one has: {key!r}")
    if not key.strip() or len(key) > MAX_KEY_LENGTH or not key.isprintable():
        raise ValueError(
            f"a key has 1 to {MAX_KEY_LENGTH} printable characters, as 'sku-17/2026-11-21'"
        )
    return key


def check_task_id(task_id: str) -> str:
    """A task id without the blanks around it.

    Raises:
        ValueError: It is none.
    """
    if not is_task_id(task_id.strip()):
        raise ValueError("a task id has 1 to 200 letters, digits and the signs ._:=+~@-")
    return task_id.strip()


def is_task_id(text: str) -> bool:
    """Whether it can be an id; it is shown, is part of commands, and names rows."""
    return bool(_TASK_ID.fullmatch(text))


def has_documented_form(task_id: str) -> bool:
    """Whether an id reads as CometAPI's do: a UUID, or in newer gateways ``task_`` and letters.

    Ids are opaque, so one of another form is used where the service confirms it.
    """
    return bool(_DOCUMENTED_ID.fullmatch(task_id))


def key_of_id(task_id: str) -> str:
    """Return the key of a generation of which only the id is known."""
    return f"task-{task_id}"


def step_key(step: str, key: str) -> str:
    """Where Prefect keeps the result of one step of one generation; safe as a file name."""
    return f"cometapi-{step}-{_digest(key, 32)}"


def file_stem(key: str, task_id: str, submitted_at: datetime, position: int = 0) -> str:
    """Return the name of an output file without its suffix: UTC time, readable key, hash.

    The hash is of the key and the task id, so two generations never share a name, even if two
    ledgers bought the same key at the same second. The name is the same for the same generation
    and holds only lower-case letters, digits and dashes, so that it is safe on every system. Long
    ids inside the key are cut to their beginning, as the UI shows them.
    """
    time = submitted_at.astimezone(UTC).strftime("%Y%m%d-%H%M%S")
    suffix = f"-{position + 1}" if position else ""
    mark = _mark(f"{key}\n{task_id}")
    return f"{time}-{_readable(key, 'video')}-{mark}{suffix}"


def batch_stem(key: str) -> str:
    """The name of a batch's own files without their suffix; safe on every system."""
    return f"{_readable(key, 'batch')}-{_mark(key)}"


def _readable(key: str, otherwise: str) -> str:
    decomposed = unicodedata.normalize("NFKD", key[:MAX_KEY_LENGTH])
    plain = decomposed.encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9]+", "-", _UUID.sub(lambda id_: id_[1], plain))
    readable = readable.strip("-")[:60].strip("-")
    return otherwise if not readable or _RESERVED.fullmatch(readable) else readable


def _mark(text: str) -> str:
    """What tells two keys apart that read alike: fifty bits, as ten letters and digits."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest)[:10].decode().lower()


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]
