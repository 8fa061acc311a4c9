# SPDX-License-Identifier: Apache-2.0
"""A row that content moderation refuses says so, and is not advised to be run again."""

import json
from pathlib import Path

import pytest

from prefect_cometapi.flows import generate_batch
from prefect_cometapi.runway import BatchFailed
from prefect_cometapi.runway.batch.models import ItemResult
from prefect_cometapi.sandbox import Fault

CODE = "SAFETY.INPUT.TEXT"


@pytest.mark.server
def test_a_moderated_row_keeps_its_code_and_has_its_own_advice(prefect_server, sandbox, tmp_path):
    """All rows of a batch were moderated, twice; the results and the error say so both times."""
    sandbox.add_fault(Fault.parse(f"create:failed:value={CODE},times=2"))
    path = tmp_path / "wanted.jsonl"
    rows = [{"id": f"{n}", "promptImage": "https://example.com/a.jpg"} for n in range(2)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(BatchFailed) as told:
            generate_batch(str(path))
        assert "Next: 2 moderated: change the prompt or the image" in str(told.value)
        assert "run the batch again" not in str(told.value)
        assert told.value.result
        assert told.value.result.output
        lines = Path(told.value.result.output).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["failure_code"] for line in lines] == [CODE, CODE]
        assert CODE in Path(told.value.result.gallery or "").read_text(encoding="utf-8")
        assert all(CODE in ItemResult.model_validate_json(line).problem() for line in lines)
    assert len(sandbox.accepted) == 2
