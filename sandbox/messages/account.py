# SPDX-License-Identifier: Apache-2.0
"""Replies of the catalogue, of the account's lists and of the balance.

The shapes are those that CometAPI's own command line reads (``cometapi-cli`` 0.3.10). The prices
are examples; the real ones change.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .replies import GATEWAY_WORDS, Json, Snapshot, Stage

QUOTA_PER_USD = 500_000

PLATFORM = "runwayml"

MAX_PAGE_SIZE = 100

DEFAULT_SECONDS = 5

_CONSUME, _REFUND = 2, 6


@dataclass(frozen=True)
class SoldModel:
    """Model in the catalogue: its price in US dollars and its Runway routes."""

    id: str
    name: str
    provider: str
    per_request: float | None = None
    per_second: float | None = None
    routes: tuple[str, ...] = ()


SOLD = (
    SoldModel("gen3a_turbo", "Gen-3 Alpha Turbo", "Runway", 0.256, routes=("image_to_video",)),
    SoldModel("gen4_aleph", "Gen-4 Aleph", "Runway", per_second=0.12, routes=("video_to_video",)),
    SoldModel("gen4.5", "Gen-4.5", "Runway", per_second=0.096, routes=("image_to_video",)),
    SoldModel("gen4_turbo", "Gen-4 Turbo", "Runway", per_second=0.04, routes=("image_to_video",)),
    SoldModel("aleph2", "Aleph 2", "Runway", per_second=0.32, routes=("video_to_video",)),
    SoldModel("act_two", "Act-Two", "Runway", per_second=0.04, routes=("character_performance",)),
    SoldModel("gen4_image", "Gen-4 Image", "Runway", 0.064, routes=("text_to_image",)),
    SoldModel("gpt-5-mini", "GPT-5 mini", "OpenAI"),
)
"""Models of the sandbox's catalogue. One of them has no Runway route."""


def catalogue() -> Json:
    """Return the reply of GET /api/models."""
    return {
        "success": True,
        "page": 1,
        "page_size": 1000,
        "data": [_listed(number, model) for number, model in enumerate(SOLD, 1)],
    }


def _listed(number: int, model: SoldModel) -> Json:
    endpoints = {
        f"runway-{route}": {"path": f"/runwayml/v1/{route}", "method": "POST"}
        for route in model.routes
    } or {"openai": {"path": "/v1/chat/completions", "method": "POST"}}
    return {
        "id": model.id,
        "code": model.id.replace(".", "-"),
        "provider": model.provider,
        "provider_code": model.provider.lower(),
        "name": model.name,
        "model_type": "video" if model.routes else "text",
        "features": [],
        "pricing": {
            "per_request": model.per_request,
            "per_second": model.per_second,
            "input": None,
            "output": None,
        },
        "endpoints": json.dumps(endpoints),
        "api_doc_url": "https://apidoc.cometapi.com/",
        "latest_model_name": model.id,
        "published_at": 1_700_000_000 + number,
        "upcoming": False,
    }


@dataclass(frozen=True)
class AccountRow:
    """Job as the account's lists report it."""

    task_id: str
    action: str
    status: str
    model: str
    progress: str
    accepted: float
    finished: float
    quota: int
    request_id: str


def quota_of(model: str, seconds: float) -> int:
    """Return the quota that a job costs; a model that is not sold costs nothing."""
    sold = next((sold for sold in SOLD if sold.id == model), None)
    if sold is None:
        return 0
    return round(QUOTA_PER_USD * (sold.per_request or seconds * (sold.per_second or 0)))


def account_row(body: Json, snapshot: Snapshot, request_id: str) -> AccountRow:
    """Return the row of a job.

    Args:
        body: Body of the request that created the job.
        snapshot: Current snapshot of the job.
        request_id: Id of the request that created the job.
    """
    model = str(body.get("model", ""))
    seconds = body.get("duration", DEFAULT_SECONDS)
    return AccountRow(
        task_id=snapshot.task_id,
        action=snapshot.action,
        status=GATEWAY_WORDS.get(snapshot.stage, "UNKNOWN"),
        model=model,
        progress=snapshot.percent,
        accepted=snapshot.accepted,
        finished=snapshot.finished,
        quota=quota_of(model, seconds if isinstance(seconds, int | float) else DEFAULT_SECONDS),
        request_id=request_id,
    )


def foreign_rows(rows: Sequence[AccountRow], number: int, now: float) -> list[AccountRow]:
    """Return rows of other clients, like the newest row if there is one."""
    like = (
        max(rows, key=lambda row: row.accepted)
        if rows
        else AccountRow(
            task_id="",
            action="IMAGE_TO_VIDEO",
            status=GATEWAY_WORDS[Stage.SUCCEEDED],
            model="gen3a_turbo",
            progress="100%",
            accepted=now,
            finished=now,
            quota=quota_of("gen3a_turbo", DEFAULT_SECONDS),
            request_id="",
        )
    )
    ids = [f"00000000-0000-4000-9000-{index:012d}" for index in range(number)]
    return [replace(like, task_id=task_id, request_id=f"foreign-{task_id}") for task_id in ids]


def task_row(row: AccountRow) -> Json:
    """Return a row of GET /api/task/self."""
    return {
        "created_at": int(row.accepted),
        "platform": PLATFORM,
        "task_id": row.task_id,
        "action": row.action,
        "status": row.status,
        "model_name": row.model,
        "progress": row.progress,
        "quota": row.quota,
        "submit_time": int(row.accepted),
        "finish_time": int(row.finished),
    }


def is_refunded(row: AccountRow) -> bool:
    """Return True for a job that failed or was cancelled."""
    return row.status == GATEWAY_WORDS[Stage.FAILED]


def log_rows(row: AccountRow) -> list[Json]:
    """Return the rows of GET /api/log/self about a job: its charge, and its refund if it failed."""
    charge = _log_row(row, _CONSUME, row.accepted, f"Task {row.task_id}")
    if not is_refunded(row):
        return [charge]
    return [charge, _log_row(row, _REFUND, row.finished, f"Refund of task {row.task_id}")]


def _log_row(row: AccountRow, kind: int, moment: float, content: str) -> Json:
    return {
        "created_at": int(moment),
        "type": kind,
        "model_name": row.model,
        "token_name": "sandbox",
        "quota": row.quota,
        "request_id": row.request_id,
        "response_id": "",
        "use_time": 0,
        "content": content,
        "other": json.dumps({"model_price": row.quota / QUOTA_PER_USD, "group_ratio": 1}),
    }


def page(rows: Sequence[Json], number: int, size: int) -> Json:
    """Return one page of a list, newest rows first."""
    size = max(1, min(size, MAX_PAGE_SIZE))
    start = (max(number, 1) - 1) * size
    return {
        "success": True,
        "message": "",
        "data": {
            "page": number,
            "page_size": size,
            "total": len(rows),
            "items": list(rows[start : start + size]),
        },
    }


def used_usd(rows: Iterable[AccountRow]) -> float:
    """Return the US dollars that were charged and not refunded."""
    return sum(row.quota for row in rows if not is_refunded(row)) / QUOTA_PER_USD


def subscription(balance: float | None) -> dict[str, Any]:
    """Return the reply of GET /v1/dashboard/billing/subscription."""
    limit = 100_000_000 if balance is None else balance
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": limit,
        "hard_limit_usd": limit,
        "system_hard_limit_usd": limit,
        "access_until": 0,
    }


def usage(usd: float) -> dict[str, Any]:
    """Return the reply of GET /v1/dashboard/billing/usage, in cents."""
    return {"object": "list", "total_usage": usd * 100}
