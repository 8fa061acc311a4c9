# SPDX-License-Identifier: Apache-2.0
"""Idempotency keys of generations, and the names of their output files."""

import base64
import hashlib
import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache

from ..redact import hide_secrets
from .requests import GenerationRequest

MAX_KEY_LENGTH = 512
_UUID = re.compile(
    r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(-[0-9a-f]{16})?\b"
)
_VARIATION = re.compile(r"run-.+-variation-(\d{1,9})")
_DOCUMENTED_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|task_[0-9a-z]{8,}",
    re.IGNORECASE,
)
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+~@-]{0,199}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


def default_key(run_id: object, request: GenerationRequest, variation: int = 1) -> str:
    """Return the idempotency key of a request made by one run; retries of the run get the same key.

    Args:
        run_id: Id of the run.
        request: Request of the generation.
        variation: Number of the video, if the same run makes several of the same request.
    """
    key = f"run-{run_id}-{request.fingerprint()[:16]}"
    return key if variation == 1 else f"{key}-variation-{variation}"


def variation_of(key: str) -> int:
    """Return the variation in a key of `default_key`; any other key is of the first one."""
    found = _VARIATION.fullmatch(key)
    return int(found[1]) if found else 1


def one_form(text: str) -> str:
    """Return the Unicode form (NFC) in which keys and ids are compared and stored.

    macOS and some editors write a letter and its accent as two characters. The same key in both
    forms looks the same, and would be bought twice.
    """
    return unicodedata.normalize("NFC", text)


def check_key(key: str) -> str:
    """Return a user's own idempotency key in its one Unicode form.

    Raises:
        ValueError: The key is empty or too long, begins or ends with a blank, contains control
            characters, or contains a secret.
    """
    key = one_form(key)
    if hide_secrets(key) != key:
        raise ValueError(
            "an idempotency key must not contain an API key, a data URI or the query of a URL, "
            "because it is shown in many places"
        )
    if key.strip() != key and key.strip() and len(key) <= MAX_KEY_LENGTH:
        raise ValueError(f"an idempotency key must not begin or end with a blank: {key!r}")
    if not key.strip() or len(key) > MAX_KEY_LENGTH or not key.isprintable():
        raise ValueError(
            f"an idempotency key must have 1 to {MAX_KEY_LENGTH} printable characters, for example "
            "'sku-17/2026-11-21'"
        )
    return key


def check_task_id(task_id: str) -> str:
    """Return a task id without surrounding blanks.

    Raises:
        ValueError: It is not a valid task id.
    """
    if not is_task_id(task_id.strip()):
        raise ValueError("a task id must have 1 to 200 characters: letters, digits and ._:=+~@-")
    return task_id.strip()


def is_task_id(text: str) -> bool:
    """Return True for a text that can be a task id: safe to show, in commands and in row names."""
    return bool(_TASK_ID.fullmatch(text))


def has_documented_form(task_id: str) -> bool:
    """Return True for an id in CometAPI's form: a UUID, or in newer gateways ``task_`` and letters.

    Ids are opaque, so an id of another form is used if the service confirms it.
    """
    return bool(_DOCUMENTED_ID.fullmatch(task_id))


def key_of_id(task_id: str) -> str:
    """Return the idempotency key of a generation of which only the task id is known."""
    return f"task-{task_id}"


def step_key(step: str, key: str) -> str:
    """Return the key under which Prefect stores the result of one step; safe as a file name."""
    return f"cometapi-{step}-{_digest(key, 32)}"


@lru_cache(maxsize=1024)
def file_stem(key: str, task_id: str, submitted_at: datetime, position: int = 0) -> str:
    """Return the name of an output file without its suffix: UTC time, readable key, hash.

    The hash covers the idempotency key and the task id, so two generations never share a name, even
    if two ledgers bought the same key in the same second. One generation always gets the same name.
    A name holds only lower-case letters, digits and dashes, so it is safe on every system. Long ids
    inside the key are cut to their beginning, as in the UI.
    """
    time = submitted_at.astimezone(UTC).strftime("%Y%m%d-%H%M%S")
    suffix = f"-{position + 1}" if position else ""
    mark = _mark(f"{key}\n{task_id}")
    return f"{time}-{_readable(key, 'video')}-{mark}{suffix}"


LONGEST_STEM = 90
"""Maximum characters of a file stem: time, readable key, hash, and the position of an output."""


def batch_stem(key: str) -> str:
    """Return the name of a batch's own files without their suffix; safe on every system."""
    return f"{_readable(key, 'batch')}-{_mark(key)}"


def _readable(key: str, otherwise: str) -> str:
    decomposed = unicodedata.normalize("NFKD", key[:MAX_KEY_LENGTH])
    plain = decomposed.encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9]+", "-", _UUID.sub(lambda id_: id_[1], plain))
    readable = readable.strip("-")[:60].strip("-")
    return otherwise if not readable or _RESERVED.fullmatch(readable) else readable


def _mark(text: str) -> str:
    """Return a hash that distinguishes keys with the same readable form: 50 bits, 10 characters."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest)[:10].decode().lower()


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]
