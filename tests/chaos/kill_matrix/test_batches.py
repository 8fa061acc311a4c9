# SPDX-License-Identifier: Apache-2.0
"""A batch that is killed and started again buys each row once, and stores each.

The full version is ``python tests/chaos/kill_matrix/batches.py --rows 500 --kills 3``.
"""

import json
from types import SimpleNamespace

import pytest

from .batches import BatchResult, check, run_batch


@pytest.mark.server
@pytest.mark.heavy
@pytest.mark.parametrize("together", [None, 5])
async def test_a_killed_batch_continues_where_it_was(prefect_server, tmp_path, together):
    """A batch that is killed twice buys and stores each row once, also if rows share a task run."""
    result = await run_batch(
        24, 2, seed=3, folder=tmp_path, api=prefect_server, together=together, per_second=10
    )
    assert result.problems == []
    assert len(result.accepted_at_kills) == 2
    assert result.accepted_at_kills[0] < result.accepted == result.stored == 24


@pytest.mark.parametrize(
    ("bought", "outcome", "problem"),
    [
        (["a", "a"], "stored", "a was bought 2 times"),
        ([], "stored", "a was bought 0 times"),
        (["a"], "failed", "0 of 1 rows are stored"),
        (["a"], "stored", "its file is not the one that was checked"),
    ],
)
def test_a_batch_that_breaks_its_promise_is_found(tmp_path, bought, outcome, problem):
    """The check finds a second purchase, a missing one, a failure and a wrong file."""
    video = tmp_path / "videos" / "a.mp4"
    video.parent.mkdir()
    video.write_bytes(b"something else")
    row = {"id": "a", "outcome": outcome, "uri": str(video), "sha256": "0" * 64}
    (tmp_path / "results.jsonl").write_text(json.dumps(row), encoding="utf-8")
    result = BatchResult(1)
    check(
        tmp_path, ["a"], [SimpleNamespace(body={"promptImage": image}) for image in bought], result
    )
    assert problem in "\n".join(result.problems)
