# SPDX-License-Identifier: Apache-2.0
"""Flows of the package work in Prefect's own ways of deploying, as a user's flow does."""

import pytest
from prefect.flows import load_flow_from_entrypoint

import prefect_cometapi.flows
from prefect_cometapi.flows.runtime.flow_decorator import RecordedFlow

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
