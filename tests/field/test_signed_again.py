# SPDX-License-Identifier: Apache-2.0
"""People presign their pictures in each run; a new signature is no other picture."""

import json
from typing import Any

import pytest

from prefect_cometapi.flows import generate_batch, image_to_video
from prefect_cometapi.runway import IdempotencyKeyConflict

pytestmark = pytest.mark.server


def signed(which: str, version: str = "") -> Any:
    """Return a request with a presigned address of one picture, as a dict."""
    address = (
        f"https://bucket.s3.amazonaws.com/cat.png?{version}X-Amz-Algorithm=AWS4-HMAC-SHA256"
        f"&X-Amz-Credential=AKIA&X-Amz-Date=20261129T06{which}Z&X-Amz-Expires=3600"
        f"&X-Amz-SignedHeaders=host&X-Amz-Signature=canary{which}"
    )
    return {"promptImage": address}


def test_a_flow_that_presigns_its_picture_anew_finds_its_video(prefect_server, sandbox):
    """A run with a key of its own is started again; the same picture is not another request."""
    first = image_to_video(signed("01"), idempotency_key="sku-17")
    again = image_to_video(signed("02"), idempotency_key="sku-17")
    assert again == first
    assert len(sandbox.accepted) == 1
    assert sandbox.accepted[0].body["promptImage"] == signed("01")["promptImage"]
    with pytest.raises(IdempotencyKeyConflict, match="promptImage was") as caught:
        image_to_video(signed("03", "versionId=2&"), idempotency_key="sku-17")
    assert "canary" not in str(caught.value)
    with pytest.raises(IdempotencyKeyConflict, match="duration was None, is 5") as caught:
        image_to_video(signed("04") | {"duration": 5}, idempotency_key="sku-17")
    assert "promptImage" not in str(caught.value)


def test_a_manifest_that_is_presigned_anew_buys_nothing_again(prefect_server, sandbox, tmp_path):
    """A nightly export signs each row anew; the rows keep their videos, in a list too."""
    manifest = tmp_path / "spring.jsonl"
    for which in ("01", "02"):
        row = {"id": "cat", **signed(which)}
        manifest.write_text(json.dumps(row))
        assert generate_batch(str(manifest)).succeeded == 1
        listed = generate_batch([signed(which)], idempotency_key="listed")
        assert listed.succeeded == 1
    assert len(sandbox.accepted) == 2
