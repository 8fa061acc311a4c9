# SPDX-License-Identifier: Apache-2.0
"""Factories for the ledger tests: intents, entries, dead runs and a service."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import uuid4

from prefect_cometapi.runway import (
    CompletedGeneration,
    Entry,
    Generation,
    Ledger,
    State,
    Status,
    StoredVideo,
)
from prefect_cometapi.runway.ledger.conditions import is_unchanged_since
from prefect_cometapi.runway.ledger.entry import Intent
from prefect_cometapi.runway.ledger.entry_rows import as_columns
from prefect_cometapi.runway.ledger.purchase import Check, buy_once
from prefect_cometapi.runway.ledger.statement import Sql
from prefect_cometapi.runway.models.generation import AssetURL

BASE = "https://api.example.com"
MOMENT = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SIGNED = "https://cdn.example.com/out.mp4?_jwt=topsecret"


def intent(key: str = "sku-17", **changes: Any) -> Intent:
    """Make an intent for a small video."""
    wanted: dict[str, Any] = {
        "idempotency_key": key,
        "base_url": BASE,
        "route": "image_to_video",
        "model": "gen4_turbo",
        "fingerprint": "a" * 64,
        "request": {"promptText": "slow zoom", "duration": 5},
        "billed_seconds": 5.0,
    }
    return Intent(**(wanted | changes))


def entry(state: State, **changes: Any) -> Entry:
    """Make a ledger entry of one generation."""
    known: dict[str, Any] = {
        **intent().model_dump(),
        "state": state,
        "claim": "c1",
        "created_at": MOMENT,
        "changed_at": MOMENT,
    }
    return Entry(**(known | changes))


def finished(task_id: str = "task-1", url: str = SIGNED) -> CompletedGeneration:
    """Make a finished generation."""
    generation = Generation(
        task_id=task_id, status=Status.SUCCEEDED, outputs=(AssetURL(url),), progress=1.0
    )
    return CompletedGeneration(generation=generation, polls=3, waited=1.5)


def video(name: str = "a", seconds: float = 5.0) -> StoredVideo:
    """Make one of its videos, stored in a storage."""
    return StoredVideo(
        uri=f"/videos/{name}.mp4",
        sidecar=f"/videos/{name}.json",
        sha256="0" * 64,
        size=1000,
        width=64,
        height=48,
        duration=seconds,
        frames=120,
        codec="h264",
    )


async def put(ledger: Ledger, state: State, key: str = "sku-17", **values: Any) -> Entry:
    """Put an entry into a state, whatever its history."""
    made = await ledger._insert(intent(key), state, uuid4().hex, **values)
    assert made
    return made


async def change(
    ledger: Ledger, key: str, state: State, *, seen: Entry | None = None, **values: Any
) -> Any:
    """Move an entry to a state that its present one allows, whatever decision leads there."""
    return await ledger._change(key, state, is_unchanged_since(seen) if seen else [], **values)


async def set_columns(ledger: Ledger, key: str, **values: Any) -> None:
    """Change columns of a row as a person at the database does, who knows no rules."""
    columns: Any = as_columns(values)
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    statement = f"UPDATE cometapi_generations SET {changes} WHERE idempotency_key = :this"
    await ledger.database.rows(Sql(statement, {**columns, "this": key}))


async def delete_row(ledger: Ledger, key: str) -> None:
    """Delete a row, as a person at the database does."""
    statement = "DELETE FROM cometapi_generations WHERE idempotency_key = :key"
    await ledger.database.rows(Sql(statement, {"key": key}))


def dead_owner(run: str = "gone") -> str:
    """Return the owner string of a run on this machine whose process has ended."""
    return f"{_dead_process()}|{run}"


@cache
def _dead_process() -> str:
    code = "from prefect_cometapi.runway.processes import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().strip()


def distant_owner(run: str = "elsewhere") -> str:
    """Return the owner string of a run on another machine."""
    return f"far-away:17:0123456789ab:4711|{run}"


class Service:
    """A service that sells generations: it counts the requests, and can delay its answers."""

    def __init__(self, *outcomes: str | BaseException) -> None:
        self.outcomes = list(outcomes)
        self.accepted: list[str] = []
        self.posts = 0
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.answer.set()

    async def post(self, _check: Check) -> str:
        """Accept a request, and return an id unless another outcome is scripted."""
        self.posts += 1
        outcome = self.outcomes.pop(0) if self.outcomes else f"task-{self.posts}"
        if isinstance(outcome, str):
            self.accepted.append(outcome)
        self.asked.set()
        await self.answer.wait()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def silent(self) -> "Service":
        """Return this service, which now answers only after ``answer`` is set."""
        self.answer.clear()
        return self


async def buy(
    ledger: Ledger,
    service: "Service",
    *,
    wish: Intent | None = None,
    seconds: float = 20.0,
    run: str = "r",
    resubmit: bool = False,
    **options: Any,
) -> Entry:
    """Buy a generation for a run and return its entry."""
    options["resubmit_as"] = run if resubmit else None
    async with asyncio.timeout(seconds):
        return await buy_once(ledger, wish or intent(), service.post, run=run, **options)


class Told(list[str]):
    """A list of warnings to the user, which a test can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def __call__(self, text: str) -> None:
        self.append(text)
        self.heard.set()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds and return its value; the condition may be async."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)
