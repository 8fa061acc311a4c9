# SPDX-License-Identifier: Apache-2.0
"""The installed package alone deploys its flows as deployments."""

import asyncio
import re

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_cometapi.deployments.commands.deploy import in_pool, served
from prefect_cometapi.runway.models.requests import ROUTES

from ..test_prefect_yaml import PREFECT_YAML

pytestmark = pytest.mark.server


def test_only_the_pool_differs():
    """Only the pool differs from prefect.yaml, and its comments are kept."""
    text = in_pool(PREFECT_YAML, "gpu-less")
    deployments = yaml.safe_load(text)["deployments"]
    assert {one["work_pool"]["name"] for one in deployments} == {"gpu-less"}
    assert text.replace("gpu-less", "videos") == PREFECT_YAML
    assert in_pool(PREFECT_YAML, "videos") == PREFECT_YAML


def test_one_command_deploys_all_flows(clean_server, shell):
    """One command deploys all flows without a file or a repository, and prints the next command."""
    assert shell("setup", "--pool", "of-deploy").returncode == 0
    done = shell("deploy", "--pool", "of-deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prefect worker start --pool of-deploy" in done.stdout

    async def found() -> list[str]:
        async with get_client() as client:
            deployments = await client.read_deployments()
        return [one.name for one in deployments if one.work_pool_name == "of-deploy"]

    names = ["catalogue", "collector", "daily", "monthly", "picture", "shard", "weekly"]
    assert sorted(asyncio.run(found())) == names


@pytest.mark.heavy
def test_a_file_beside_the_command_is_not_run(clean_server, shell, tmp_path):
    """A module in the working directory with the name of one of Prefect's is never imported."""
    for name in ("prefect", "yaml", "httpx"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    assert shell("setup", "--pool", "of-deploy").returncode == 0
    done = shell("deploy", "--pool", "of-deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.heavy
async def test_what_the_user_changed_survives_the_next_deployment(clean_server, shell):
    """Parameters, schedules and tags from the UI are kept when a new version is deployed."""
    assert shell("setup", "--pool", "of-deploy").returncode == 0
    assert shell("deploy", "--pool", "of-deploy").returncode == 0
    parameters = {"request": {"promptImage": "https://example.com/ours.jpg"}}
    async with get_client() as client:
        daily = await client.read_deployment_by_name("image-to-video/daily")
        (schedule,) = daily.schedules
        await client.update_deployment_schedule(daily.id, schedule.id, active=True)
        changes = DeploymentUpdate(parameters=parameters, tags=["ours"], description="older")
        await client.update_deployment(daily.id, changes)
        done = shell("deploy", "--pool", "of-deploy")
        assert done.returncode == 0, done.stdout + done.stderr
        again = await client.read_deployment_by_name("image-to-video/daily")
    assert again.parameters == parameters
    assert [one.active for one in again.schedules] == [True]
    assert {"ours", "cometapi"} <= set(again.tags)
    assert again.description == daily.description


def test_what_is_served_buys_nothing_by_itself(prefect_server):
    """Of the served deployments, only the collector has a schedule."""
    deployments = served()
    names = {one.flow_name: len(one.schedules or []) for one in deployments}
    routes = {route.replace("_", "-"): 0 for route in ROUTES}
    batch = {"generate-batch": 0, "generate-batch-shard": 0}
    assert names == routes | batch | {"collect": 1}
    assert all(re.match(r"prefect_cometapi\.flows\.", one.entrypoint) for one in deployments)


def test_a_pool_that_is_not_there_is_named_before_anything_is_deployed(
    clean_server, command, capsys
):
    """A missing pool is reported before anything is deployed, with the command that creates it."""
    assert command("deploy", "--pool", "nowhere") == 1
    told = capsys.readouterr().err
    assert "Prefect: there is no work pool nowhere" in told
    assert "Next: prefect-cometapi setup --pool nowhere" in told


@pytest.mark.parametrize("words", ["setup", "deploy", "serve"])
def test_an_unreachable_server_is_reported_without_a_stack_trace(
    prefect_server, command, capsys, words
):
    """An unreachable server is reported without a stack trace, with the command that starts one."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert command(words) == 1
    told = capsys.readouterr().err
    assert "Prefect: the server does not answer: " in told
    assert "Next: prefect server start, or unset PREFECT_API_URL" in told
    assert "Traceback" not in told
