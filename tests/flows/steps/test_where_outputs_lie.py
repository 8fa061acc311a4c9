# SPDX-License-Identifier: Apache-2.0
"""Addresses of outputs that a worker is allowed to download from."""

import pytest

from prefect_cometapi.flows.steps.fetch import afetch_output
from prefect_cometapi.runway import InvalidOutput, Submission
from prefect_cometapi.runway.models.generation import (
    AssetURL,
    CompletedGeneration,
    Generation,
    Status,
)

from ...runway.factories import MOMENT
from ...runway.static_server import static_server


def ended_with(url: str) -> CompletedGeneration:
    """Return a succeeded generation with one output at an address."""
    generation = Generation(task_id="t", status=Status.SUCCEEDED, outputs=(AssetURL(url),))
    return CompletedGeneration(generation=generation, polls=1, waited=0.0)


async def test_what_else_listens_beside_the_service_is_not_asked(sandbox):
    """Other ports beside a local gateway, such as databases, are never contacted."""
    submission = Submission(idempotency_key="k", task_id="t", submitted_at=MOMENT)
    async with static_server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as (port, arrived):
        finished = ended_with(f"http://127.0.0.1:{port}/api/admin/settings")
        with pytest.raises(InvalidOutput, match="is not https"):
            await afetch_output.fn(submission, finished, None, None)
    assert arrived == []
    with pytest.raises(InvalidOutput, match="not an MP4 or WebM file"):
        await afetch_output.fn(submission, ended_with(f"{sandbox.url}/openapi.json"), None, None)
