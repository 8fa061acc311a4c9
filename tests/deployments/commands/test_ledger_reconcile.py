# SPDX-License-Identifier: Apache-2.0
"""Command ``ledger reconcile``: verdicts, evidence, the commands that decide, and ``--apply``."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import ImageToVideoRequest, State

from .test_ledger import entry, known, wide

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
_ = wide  # a fixture of this module too
REQUEST = ImageToVideoRequest.model_validate({"promptImage": "https://example.com/cat.jpg"})
TOKEN = "sandbox-access-token"


def times(**ago: float) -> dict[str, Any]:
    """Return the times of a submission some time ago."""
    moment = datetime.now(UTC) - timedelta(**ago)
    return {"claimed_at": moment, "unresolved_since": moment}


@pytest.fixture
def account(sandbox, monkeypatch):
    """Point the settings to the sandbox's account; return a function that buys there."""
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", TOKEN)
    monkeypatch.setenv("COMETAPI_ACCOUNT_DELAY", "0")
    monkeypatch.setenv("COMETAPI_CLOCK_SLACK", "1")

    async def buy() -> str:
        async with CometAPICredentials.from_settings().get_client() as client:
            return await client.create(REQUEST)

    return lambda: run_sync(buy())


def uncertain(sandbox, key: str = "sku-17", **ago: float) -> None:
    entry(key, base_url=sandbox.url, charges=1, note="a reset", **times(**ago))


@pytest.fixture
def witness(sandbox, account, monkeypatch) -> None:
    """Record a purchase that the account lists; the clocks are the same one."""
    monkeypatch.setenv("COMETAPI_CLOCK_SLACK", "0")
    sent = datetime.now(UTC)
    values = {"task_id": account(), "claimed_at": sent, "submitted_at": datetime.now(UTC)}
    entry("known", State.STORED, base_url=sandbox.url, charges=1, **values)


def test_the_verdict_and_the_commands_are_shown_and_nothing_changes(
    command, capsys, sandbox, account
):
    """Without `--apply`, the task and the command that adopts it are shown; the status is 0."""
    uncertain(sandbox, seconds=2)
    task_id = account()
    assert command("ledger", "reconcile") == 0
    told = capsys.readouterr().out
    assert "sku-17: probably this" in told
    assert f"prefect-cometapi ledger adopt sku-17 {task_id}" in told
    assert "prefect-cometapi ledger reconcile sku-17 --apply" in told
    assert known("sku-17").state is State.UNCERTAIN
    assert known("sku-17").evidence == ""


def test_what_fits_is_adopted_with_apply(command, capsys, sandbox, account):
    """`--apply` records the task, and the next command stores its video."""
    uncertain(sandbox, seconds=2)
    task_id = account()
    assert command("ledger", "reconcile", "sku-17", "--apply") == 0
    told = capsys.readouterr().out
    assert "Done: the task is recorded as the generation" in told
    assert "prefect-cometapi collect" in told
    assert (known("sku-17").state, known("sku-17").task_id) == (State.SUBMITTED, task_id)
    assert command("ledger", "show", "sku-17") == 0
    assert "probably this: it is the only task that fits" in capsys.readouterr().out


def test_a_key_is_freed_with_apply(command, capsys, sandbox, account, witness):
    """A submission that the complete list lacks frees its key once it can no longer arrive."""
    uncertain(sandbox, "early", minutes=10)
    uncertain(sandbox, "late", minutes=20)
    run_sync(_ended(minutes=9))
    assert command("ledger", "reconcile", "--apply") == 2
    told = capsys.readouterr().out
    assert "Not done: it may still be accepted until" in told
    assert "Done: the key is free again" in told
    assert "run it again with the same idempotency key" in told
    assert known("early").state is State.UNCERTAIN
    assert known("late").state is State.RESUBMIT_ALLOWED


async def _ended(**ago: float) -> None:
    """Move the ends of all attempts into the past."""
    from prefect_cometapi.flows.runtime.ledger_access import open_ledger
    from prefect_cometapi.runway.ledger.statement import Sql

    moment = datetime.now(UTC) - timedelta(**ago)
    ledger = await open_ledger()
    statement = "UPDATE cometapi_generations SET changed_at = :moment WHERE state = 'uncertain'"
    await ledger.database.rows(Sql(statement, {"moment": moment}))


def test_what_is_ambiguous_is_left_to_a_person(command, capsys, sandbox, account):
    """Two tasks that fit end with status 2, and each can be adopted by its command."""
    uncertain(sandbox, "sku 17", seconds=2)
    ids = [account(), account()]
    assert command("ledger", "reconcile", "--apply") == 2
    told = capsys.readouterr().out
    assert "sku 17: undecided" in told
    for task_id in ids:
        assert f"prefect-cometapi ledger adopt 'sku 17' {task_id}" in told
    assert "prefect-cometapi ledger resubmit 'sku 17'" in told
    assert known("sku 17").state is State.UNCERTAIN
    assert known("sku 17").evidence.startswith("undecided: 2 tasks")


def test_without_a_token_nothing_is_decided(command, capsys, sandbox, account, monkeypatch):
    """The missing setting is named, and the status is 2."""
    monkeypatch.delenv("COMETAPI_ACCESS_TOKEN")
    uncertain(sandbox, seconds=2)
    assert command("ledger", "reconcile", "--apply") == 2
    assert "COMETAPI_ACCESS_TOKEN" in capsys.readouterr().out


def test_the_credentials_must_be_of_the_same_service(command, capsys, sandbox, account):
    """A purchase from another service, or without an API key, is not looked up here."""
    entry("elsewhere", base_url="https://api.example.com", **times(seconds=2))
    assert command("ledger", "reconcile") == 2
    assert "it was bought at https://api.example.com" in capsys.readouterr().out


def test_without_an_api_key_nothing_is_decided(command, capsys, sandbox, account, monkeypatch):
    """The missing API key is the reason that is shown."""
    uncertain(sandbox, seconds=2)
    monkeypatch.delenv("COMETAPI_KEY")
    assert command("ledger", "reconcile") == 2
    assert "there is no API key" in capsys.readouterr().out


def test_the_result_is_json_for_scripts(command, capsys, sandbox, account):
    """`--json` prints verdict, window, candidates and commands, and no secret."""
    uncertain(sandbox, seconds=2)
    task_id = account()
    assert command("ledger", "reconcile", "--json") == 0
    text = capsys.readouterr().out
    (told,) = json.loads(text)
    assert (told["verdict"], told["done"]) == ("probably this", "none")
    assert [task["task_id"] for task in told["candidates"]] == [task_id]
    assert told["commands"] == [f"prefect-cometapi ledger adopt sku-17 {task_id}"]
    assert len(told["window"]) == 2
    assert TOKEN not in text


def test_without_uncertain_submissions_there_is_nothing_to_do(command, capsys, sandbox, account):
    """An unknown key fails; a key that is not uncertain is noted."""
    assert command("ledger", "reconcile") == 0
    assert "No uncertain submissions." in capsys.readouterr().out
    entry("done", State.STORED, base_url=sandbox.url)
    assert command("ledger", "reconcile", "done") == 0
    assert "done is stored, and not uncertain" in capsys.readouterr().err
    assert command("ledger", "reconcile", "missing") == 1
    assert "The ledger has no idempotency key missing." in capsys.readouterr().err


def test_a_verdict_that_frees_names_its_command(command, capsys, sandbox, account, witness):
    """Without `--apply`, a submission that was not accepted names `ledger resubmit`."""
    uncertain(sandbox, minutes=20)
    run_sync(_ended(minutes=19))
    assert command("ledger", "reconcile") == 0
    told = capsys.readouterr().out
    assert "sku-17: not accepted" in told
    assert "prefect-cometapi ledger resubmit sku-17" in told
