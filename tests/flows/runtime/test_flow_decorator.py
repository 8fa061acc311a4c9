# SPDX-License-Identifier: Apache-2.0
"""Flows of the package work in Prefect's own ways of deploying, as a user's flow does."""

import os
import subprocess
import sys
from typing import cast

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flows import load_flow_from_entrypoint

import prefect_cometapi.flows
from prefect_cometapi.flows.runtime.flow_decorator import RecordedFlow

from ... import waiting

FLOWS = [name for name in prefect_cometapi.flows.__all__ if not name.startswith("_")]
PUBLIC = [
    flow
    for name in FLOWS
    if isinstance(flow := getattr(prefect_cometapi.flows, name), RecordedFlow)
]


@pytest.mark.parametrize("flow", PUBLIC, ids=lambda flow: flow.fn.__name__)
async def test_a_deployment_names_the_public_module(flow):
    """Each way of deploying names the flow's public module, from which Prefect loads it."""
    made = [
        await flow.ato_deployment("mine"),
        await flow.with_options(name="other").ato_deployment("mine"),
    ]
    for deployment in made:
        assert deployment.entrypoint == f"prefect_cometapi.flows.{flow.fn.__name__}"
        assert load_flow_from_entrypoint(deployment.entrypoint) is flow


def test_every_public_flow_is_one_of_these():
    """The flows are found by their type, and none of them is missing."""
    assert {flow.name for flow in PUBLIC} >= {"image-to-video", "video-to-video", "collect"}


@pytest.mark.heavy
@pytest.mark.server
def test_a_served_flow_makes_its_video(prefect_server, sandbox, tmp_path):
    """`image_to_video.serve("mine")` in a script of three lines runs, and makes a video."""
    # Prefect starts a run in a new process that imports the script, so `serve` needs the guard.
    script = tmp_path / "serving.py"
    script.write_text(
        "from prefect_cometapi import image_to_video\n"
        'if __name__ == "__main__":\n'
        '    image_to_video.serve("mine", parameters={"request": '
        '{"promptImage": "https://example.com/cat.jpg"}})\n'
    )
    env = os.environ | {"PREFECT_API_URL": prefect_server, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    serving = subprocess.Popen(
        [sys.executable, script], env=env, cwd=tmp_path, start_new_session=True
    )
    try:
        with get_client(sync_client=True) as client:

            def is_served() -> bool:
                return any(found.name == "mine" for found in client.read_deployments())

            waiting.until(is_served, "the deployment", 60)
        run = cast("FlowRun", run_deployment("image-to-video/mine", timeout=120, poll_interval=1))
        assert run.state
        assert run.state.is_completed(), run.state
        assert len(sandbox.accepted) == 1
    finally:
        waiting.kill(serving)
