# SPDX-License-Identifier: Apache-2.0
"""Names of flow runs, by which a person finds a video in a list of runs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.utilities.names import generate_slug

from prefect_cometapi.flows import (
    collect,
    finish_generation,
    generate_batch,
    image_to_video,
)
from prefect_cometapi.flows.runtime.run_names import MAX_NAME_LENGTH, is_generated, run_name
from prefect_cometapi.runway import ImageToVideoRequest, VideoToVideoRequest

CAT = "https://example.com/cat.jpg"
SECRETS = [
    "https://bucket.example/cat.png?X-Amz-Signature=0f1e2d3c4b5a",
    "data:image/png;base64,iVBORw0KGgo0f1e2d3c4b5a",
    "sk-canary0f1e2d3c4b5a",
    "Bearer 0f1e2d3c4b5a69788796a5b4",
    "token=0f1e2d3c4b5a69788796a5b4",
]


def name_for(prompt: str | None, **more: Any) -> str | None:
    request = ImageToVideoRequest.model_construct(prompt_image=CAT, prompt_text=prompt)
    return run_name({"request": request, **more})


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "slow zoom"),
        ({"idempotency_key": "sku-17/2026-11-21"}, "sku-17/2026-11-21"),
        ({"variation": 2}, "slow zoom, variation 2"),
        ({"task_id": "3d957031"}, "3d957031"),
    ],
)
def test_a_run_is_named_after_its_key_or_its_prompt(parameters, name):
    """The key comes first, then an adopted task id, then the prompt with its variation."""
    assert name_for("slow zoom", **parameters) == name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("one\ntwo\tthree", "one two three"),
        ("A cat, slow zoom.", "A cat, slow zoom"),
        ("a cat " * 30, "a cat a cat a cat a cat a cat a cat a cat a cat a cat a…"),
        ("猫" * 100, "猫" * 59 + "…"),
        ("zoom to https://example.com/a.png slowly", "zoom to"),
        ("\x1b[31mred", "\N{REPLACEMENT CHARACTER}[31mred"),
        ("", None),
        (None, None),
    ],
)
def test_a_name_is_one_short_line(prompt, name):
    """Long, foreign and hostile prompts give one short line; none leaves Prefect's own name."""
    assert name_for(prompt) == name


@given(st.sampled_from(SECRETS), st.text(max_size=80), st.text(max_size=20))
def test_no_secret_of_a_prompt_is_in_a_name(secret, before, after):
    """No key, token, data URI or signed URL gets into a name, wherever it is in the prompt."""
    name = name_for(f"{before} {secret} {after}") or ""
    assert "0f1e2d3c4b5a" not in name
    assert len(name) <= MAX_NAME_LENGTH


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("lists/catalogue.csv", "catalogue.csv"),
        ("C:\\lists\\catalogue.csv", "catalogue.csv"),
        ("https://me:secret@example.com/catalogue.csv?sig=0f1e2d3c4b5a", "catalogue.csv"),
        ("https://me:secret@example.com", "example.com"),
        ([{"promptImage": CAT}], None),
    ],
)
def test_a_batch_is_named_after_its_manifest(manifest, name):
    """A batch without a key has the name of its manifest's file, without user and signature."""
    assert run_name({"requests": manifest}) == name
    assert run_name({"requests": manifest, "idempotency_key": "autumn"}) == "autumn"


def test_a_name_that_a_user_typed_stays():
    """Somebody named a run summer-campaign; only names that Prefect made up are replaced."""
    assert all(is_generated(generate_slug(2)) for _ in range(500))
    assert is_generated("awesome2-red-panda")
    typed = ("summer-campaign", "spring-sale", "nightly-run", "teaser", "Hairy-Lemur", "sku-17")
    assert not any(map(is_generated, typed))


@pytest.mark.server
@pytest.mark.heavy
def test_the_runs_of_a_day_can_be_told_apart(prefect_server, sandbox, tmp_path):
    """Runs of flows, subflows, batches and deployments have names that say what they make."""
    request = ImageToVideoRequest(prompt_image=CAT, prompt_text="slow zoom")
    ended: Any = image_to_video(request, return_state=True)
    other = VideoToVideoRequest(video_uri=CAT, prompt_text="dawn")
    generate_batch([other], idempotency_key="autumn")
    finish_generation(sandbox.accepted[0].task_id)
    collect()

    @flow
    def campaign() -> None:
        image_to_video(request, idempotency_key="sku-17/dawn")
        image_to_video.with_options(flow_run_name="the user's own")(request)

    campaign()
    deployment: Any = image_to_video.to_deployment("named", parameters={"request": request})
    deployment.apply()
    for name in (None, "for the autumn"):
        run: Any = run_deployment("image-to-video/named", timeout=0, flow_run_name=name)
        run_flow(image_to_video, flow_run=run)
    with get_client(sync_client=True) as client:
        names = {run.name for run in client.read_flow_runs()}
        first = client.read_flow_run(ended.state_details.flow_run_id)
    expected = {"slow zoom", "autumn", "sku-17/dawn", "the user's own", "for the autumn"}
    assert expected | {sandbox.accepted[0].task_id} <= names
    assert first.name == "slow zoom"
