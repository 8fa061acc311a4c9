# SPDX-License-Identifier: Apache-2.0
"""A record of each submission beside Prefect's own, so that no retry makes it twice.

Prefect keeps a task's result when the task completed, and only then: a timeout, a cancelled or
killed process, a failed write, a rolled-back transaction or a refreshed cache leave nothing, and
the next attempt would buy again. So the key is claimed in the result storage before the POST, and
the claim is let go only after an answer that makes certain that nothing was bought. A claim that
was left, or cannot be read, means: perhaps bought.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect.context import TaskRunContext
from prefect.results import ResultStore

from ..runway.errors import StorageUnavailable, SubmissionUncertain
from ..runway.generation import Submission
from ..runway.names import step_key
from .display import logger

_LOOK_AGAIN = 0.05
"""Seconds between two looks whether another call in this process is done with the key."""

_in_flight: dict[str, object] = {}


@asynccontextmanager
async def alone_with(key: str) -> AsyncIterator[None]:
    """Let calls of this process that submit the same key go one after another."""
    mine = object()
    # Another thread's event loop may hold it, so there is no one event; setdefault is atomic.
    while _in_flight.setdefault(key, mine) is not mine:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_AGAIN)
    try:
        yield
    finally:
        del _in_flight[key]


async def claim(key: str) -> Submission | None:
    """Claim a key before its POST, or give back the submission that it stands for already.

    Raises:
        SubmissionUncertain: An earlier attempt claimed it and did not learn the outcome.
        StorageUnavailable: The claim cannot be kept, so nothing may be sent.
    """
    store = _store()
    if store is None:  # outside of Prefect nothing is retried
        return None
    record = await _read(store, key)
    if record.get("state") == "accepted":
        return Submission.model_validate(record["submission"])
    if record.get("state") == "sending":
        raise SubmissionUncertain("an earlier attempt sent the request and got no answer")
    try:
        await _write(store, key, {"state": "sending"})
    except Exception as error:
        raise StorageUnavailable(
            f"Prefect's result storage does not keep the submission ({type(error).__name__}), "
            "so it was not made"
        ) from error
    return None


async def keep(submission: Submission) -> None:
    """Record what was bought. If that fails, the claim stays and stops the next attempt."""
    await _note(
        submission.key,
        {"state": "accepted", "submission": submission.model_dump(mode="json")},
    )


async def let_go(key: str) -> None:
    """Record that nothing was bought, so that the key may be submitted again."""
    await _note(key, {"state": "refused"})


async def _note(key: str, record: dict[str, Any]) -> None:
    store = _store()
    try:
        if store:
            await _write(store, key, record)
    except Exception as error:  # noqa: BLE001 -- the claim stays, which is the safe side
        logger().warning(
            "The submission's outcome is not recorded (%s): another attempt with this key will "
            "end as SubmissionUncertain",
            type(error).__name__,
        )


def _store() -> ResultStore | None:
    context = TaskRunContext.get()
    return context.result_store if context else None


async def _read(store: ResultStore, key: str) -> dict[str, Any]:
    try:
        record = (await store.aread(step_key("claim", key))).result
    except Exception as error:
        if says_absent(error):
            return {}
        raise SubmissionUncertain("the record of an earlier attempt cannot be read") from error
    return record if isinstance(record, dict) else {"state": "sending"}


def says_absent(error: Exception) -> bool:
    """Whether a storage says that there is no such record, and not that it cannot be read; pure.

    Judged by what the error is (fsspec, Prefect's local files, botocore, Google, Azure), never by
    words anywhere in it: it quotes a path, which may hold any.
    """
    reply = getattr(error, "response", None)
    told = reply.get("Error", {}).get("Code") if isinstance(reply, dict) else None
    return (
        isinstance(error, FileNotFoundError)
        or str(error).rstrip(".").endswith("does not exist")
        or str(told) in {"404", "NoSuchKey"}
        or 404 in {getattr(error, "code", None), getattr(error, "status_code", None)}
    )


async def _write(store: ResultStore, key: str, record: dict[str, Any]) -> None:
    await store.awrite(record, key=step_key("claim", key))
