# SPDX-License-Identifier: Apache-2.0
"""A reply may list several outputs, up to a limit."""

import pytest

from prefect_cometapi.flows.steps.fetch import afetch_output
from prefect_cometapi.runway import InvalidOutput, Submission
from prefect_cometapi.runway.api.reply_parser import MAX_OUTPUTS
from prefect_cometapi.runway.models.generation import (
    AssetURL,
    CompletedGeneration,
    Generation,
    Status,
)

from ...runway.factories import MOMENT


async def test_outputs_without_end_are_not_fetched(sandbox):
    """A reply with too many outputs is refused with their number, and none is downloaded."""
    urls = tuple(AssetURL(f"{sandbox.url}/assets/{n}.mp4") for n in range(MAX_OUTPUTS + 1))
    generation = Generation(task_id="t", status=Status.SUCCEEDED, outputs=urls)
    finished = CompletedGeneration(generation=generation, polls=1, waited=0.0)
    submission = Submission(idempotency_key="k", task_id="t", submitted_at=MOMENT)
    with pytest.raises(InvalidOutput, match=f"lists more than {MAX_OUTPUTS} outputs"):
        await afetch_output.fn(submission, finished, None, None)
    assert sandbox.requests == []
