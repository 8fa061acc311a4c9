# SPDX-License-Identifier: Apache-2.0
"""Prefect objects of this package are created once, changed in place, and never lost."""

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import get_client

from prefect_cometapi.blocks import CometAPICredentials, GenerationLedger
from prefect_cometapi.deployments.commands.setup import (
    CHANGED,
    LEFT_OUT,
    MADE,
    REGISTERED,
    THERE,
    Plan,
    Setup,
)
from prefect_cometapi.flows.batch.concurrency import IN_FLIGHT_LIMIT

from ...conftest import KEY

pytestmark = pytest.mark.server

PLAN = Plan(block="of-setup", pool="of-setup", limit=7)


async def run(plan: Plan, *, dry_run: bool = False) -> dict[str, str]:
    """Run the setup, and return the result for each object."""
    setup = Setup(dry_run=dry_run)
    await setup.run(plan)
    return setup.done


async def test_it_is_made_once_and_then_left_alone(clean_server):
    """A second setup finds all objects and changes nothing."""
    first = await run(PLAN)
    assert set(first.values()) == {MADE, REGISTERED}
    second = await run(PLAN)
    assert set(second.values()) == {THERE, REGISTERED}
    assert first.keys() == second.keys()
    credentials = await CometAPICredentials.aload("of-setup")
    assert credentials.api_key.get_secret_value() == KEY
    assert (await GenerationLedger.aload("of-setup")).url
    async with get_client() as client:
        assert (await client.read_work_pool("of-setup")).type == "process"
        limit = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
        assert limit.limit == 7
        assert len(await client.read_automations()) == 3


async def test_what_differs_is_changed_in_place(clean_server, monkeypatch):
    """A new key, another limit and an edited automation are changed in place."""
    await run(PLAN)
    edited = await Automation.aread(name="cometapi: a crashed run starts again")
    edited.description = "edited by hand"
    await edited.aupdate()
    monkeypatch.setenv("COMETAPI_KEY", "sk-another-key-of-the-tests")
    done = await run(Plan(block="of-setup", pool="of-setup", limit=9))
    assert {what.split(":")[0] for what, outcome in done.items() if outcome == CHANGED} == {
        "block cometapi-credentials/of-setup",
        f"concurrency limit {IN_FLIGHT_LIMIT}",
        "automation 'cometapi",
    }
    assert set((await run(Plan("of-setup", "of-setup", 9))).values()) == {THERE, REGISTERED}
    async with get_client() as client:
        assert len(await client.read_automations()) == 3


async def test_a_dry_run_changes_nothing(clean_server, capsys):
    """A dry run prints the planned objects and creates none."""
    done = await run(PLAN, dry_run=True)
    assert MADE in done.values()
    assert "would be made" in capsys.readouterr().out
    async with get_client() as client:
        assert await client.read_automations() == []
        assert await client.read_global_concurrency_limits() == []


async def test_without_a_key_the_rest_is_made(clean_server, monkeypatch):
    """Without an API key, the other objects are created, and no empty block is saved."""
    monkeypatch.delenv("COMETAPI_KEY")
    done = await run(PLAN)
    assert done["block cometapi-credentials/of-setup"] == LEFT_OUT
    assert done["work pool of-setup"] == MADE


def test_a_block_or_deployment_that_is_not_there_is_named(shell):
    """A missing block or deployment is named without a stack trace."""
    done = shell("setup", "--dry-run", "--then", "load/nightly")
    assert done.returncode == 1
    assert "there is no load/nightly" in done.stderr
    assert "Traceback" not in done.stderr


async def test_no_secret_is_shown(clean_server, capsys):
    """The API key is in its block and never in the output."""
    await run(PLAN)
    assert KEY not in capsys.readouterr().out
