# SPDX-License-Identifier: Apache-2.0
"""Prefect objects of this package are created once, changed in place, and never lost."""

import re

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from pydantic import SecretStr

from prefect_cometapi.blocks import CometAPICredentials, GenerationLedger
from prefect_cometapi.deployments.commands.setup import (
    CREATED,
    REGISTERED,
    SKIPPED,
    UNCHANGED,
    UPDATED,
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
    assert set(first.values()) == {CREATED, REGISTERED}
    second = await run(PLAN)
    assert set(second.values()) == {UNCHANGED, REGISTERED}
    assert first.keys() == second.keys()
    credentials = await CometAPICredentials.aload("of-setup")
    assert credentials.api_key.get_secret_value() == KEY
    assert (await GenerationLedger.aload("of-setup")).url
    async with get_client() as client:
        assert (await client.read_work_pool("of-setup")).type == "process"
        limit = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
        assert limit.limit == 7
        assert len(await client.read_automations()) == 5


@pytest.mark.heavy
async def test_what_differs_is_changed_in_place(clean_server, monkeypatch):
    """A new key, another limit and an edited automation are changed in place."""
    await run(PLAN)
    edited = await Automation.aread(name="cometapi: restart crashed runs")
    edited.description = "edited by hand"
    await edited.aupdate()
    monkeypatch.setenv("COMETAPI_KEY", "sk-another-key-of-the-tests")
    done = await run(Plan(block="of-setup", pool="of-setup", limit=9))
    assert {what.split(":")[0] for what, outcome in done.items() if outcome == UPDATED} == {
        "block cometapi-credentials/of-setup",
        f"concurrency limit {IN_FLIGHT_LIMIT}",
        "automation 'cometapi",
    }
    assert set((await run(Plan("of-setup", "of-setup", 9))).values()) == {UNCHANGED, REGISTERED}
    async with get_client() as client:
        assert len(await client.read_automations()) == 5


async def test_what_was_changed_in_the_ui_is_kept(clean_server, monkeypatch):
    """A limit and a token that were set in the UI stay if the command and environment name none."""
    await run(PLAN)
    credentials = await CometAPICredentials.aload("of-setup")
    credentials.access_token = SecretStr("token-of-the-ui")
    await credentials.asave("of-setup", overwrite=True)
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT, 20)
        monkeypatch.setenv("COMETAPI_KEY", "sk-another-key-of-the-tests")
        done = await run(Plan(block="of-setup", pool="of-setup"))
        limit = await client.read_global_concurrency_limit_by_name(IN_FLIGHT_LIMIT)
    assert limit.limit == 20
    assert done[f"concurrency limit {IN_FLIGHT_LIMIT}: 20"] == UNCHANGED
    kept = await CometAPICredentials.aload("of-setup")
    assert kept.access_token
    assert kept.access_token.get_secret_value() == "token-of-the-ui"
    assert kept.api_key.get_secret_value() == "sk-another-key-of-the-tests"


async def test_a_dry_run_changes_nothing(clean_server, capsys):
    """A dry run prints the planned objects and creates none."""
    done = await run(PLAN, dry_run=True)
    assert CREATED in done.values()
    assert "would be created" in capsys.readouterr().out
    async with get_client() as client:
        assert await client.read_automations() == []
        assert await client.read_global_concurrency_limits() == []


async def test_without_a_key_the_rest_is_made(clean_server, monkeypatch):
    """Without an API key, the other objects are created, and no empty block is saved."""
    monkeypatch.delenv("COMETAPI_KEY")
    done = await run(PLAN)
    assert done["block cometapi-credentials/of-setup"] == SKIPPED
    assert done["work pool of-setup"] == CREATED


@pytest.mark.parametrize(
    ("option", "name", "next_step"),
    [
        ("--then", "deployment load/nightly", "prefect deployment ls"),
        ("--notify", "block slack-webhook/ops", "prefect block ls"),
    ],
)
def test_a_block_or_deployment_that_is_not_there_is_named(
    clean_server, command, capsys, option, name, next_step
):
    """A missing block or deployment is named, with the command that lists those there are."""
    assert command("setup", "--dry-run", option, name.split()[1]) == 1
    message = capsys.readouterr().err
    assert message == f"Prefect: there is no {name}\n  Next: {next_step}\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--then", "expected FLOW/NAME of a deployment, such as load/nightly"),
        ("--notify", "expected TYPE-SLUG/NAME of a saved block, such as slack-webhook/ops"),
    ],
)
@pytest.mark.parametrize("name", ["nightly", "load/", "/nightly", "load/nightly/2", ""])
def test_a_name_of_another_form_is_refused_with_the_expected_form(
    command, capsys, option, expected, name
):
    """A name that does not have exactly one slash is refused before Prefect is asked."""
    assert command("setup", option, name) == 2
    message = re.sub(r"[│\s]+", " ", capsys.readouterr().err)
    assert f'Invalid value "{name}" for {option}. {expected}' in message
    assert "Traceback" not in message


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.heavy
async def test_a_saved_block_that_is_not_valid_is_reported_and_kept(clean_server, capsys, dry_run):
    """A saved block that no longer validates is reported by field, and is not overwritten."""
    await run(PLAN)
    async with get_client() as client:
        saved = await client.read_block_document_by_name("of-setup", "cometapi-credentials")
        data = {**saved.data, "base_url": "nonsense"}
        await client.update_block_document(saved.id, BlockDocumentUpdate(data=data))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            await run(PLAN, dry_run=dry_run)
        kept = await client.read_block_document_by_name("of-setup", "cometapi-credentials")
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert "the saved block cometapi-credentials/of-setup is not valid: base_url: " in message
    assert "prefect block delete cometapi-credentials/of-setup, then run setup again" in message
    assert KEY not in message
    assert kept.data["base_url"] == "nonsense"


@pytest.mark.heavy
async def test_no_secret_is_shown(clean_server, capsys):
    """The API key is in its block and never in the output."""
    await run(PLAN)
    assert KEY not in capsys.readouterr().out


def test_a_dry_run_without_a_server_names_the_temporary_one(command, capsys, monkeypatch):
    """Nobody takes the comparison with an empty server for one with their own."""
    monkeypatch.setattr("prefect_cometapi.deployments.console.uses_temporary_server", lambda: True)
    monkeypatch.setattr("prefect_cometapi.deployments.commands.setup.connect", lambda *_: None)
    monkeypatch.setattr(Setup, "run", nothing)
    assert command("setup", "--dry-run") == 0
    assert "PREFECT_API_URL is not set, so a temporary Prefect server" in capsys.readouterr().err


async def nothing(*_: object) -> None:
    """Set nothing up."""
