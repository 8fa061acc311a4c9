# SPDX-License-Identifier: Apache-2.0
"""The ledger block validates the URL of the ledger and never shows its password."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.blocks.core import Block
from pydantic import SecretStr, ValidationError

from prefect_cometapi.blocks import GenerationLedger
from prefect_cometapi.runway import State
from prefect_cometapi.runway.ledger.entry import Intent

PASSWORD = "topsecret5c0ffee"
URL = f"postgresql://buyer:{PASSWORD}@db.example.com/ledger"


def block(url: str = URL) -> GenerationLedger:
    return GenerationLedger(url=SecretStr(url))


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("sqlite:///ledger.db", "needs an absolute path (sqlite:////folder/ledger.db)"),
        ("sqlite://", "a database in memory is lost"),
        ("mysql://u:p@host/db", "in SQLite or PostgreSQL, not in mysql"),
        ("ledger.db", "the path 'ledger.db', and not a database URL: for that file, write"),
        ("", "write sqlite:////folder/ledger.db or postgresql://user:password@host/database"),
        ("**********", "write sqlite:////folder/ledger.db or postgresql://"),
    ],
)
def test_a_url_that_can_be_no_ledger_is_refused_with_what_to_write(url, advice):
    """An invalid ledger URL is refused in the form, before any video is bought."""
    with pytest.raises(ValidationError) as caught:
        block(url)
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("url",)
    assert advice in problem["msg"]


@pytest.mark.parametrize(
    "fields",
    [
        {"url": f"oracle://buyer:{PASSWORD}@host/db"},
        {"url": f"buyer:{PASSWORD}@host"},
        {"url": URL, "password": PASSWORD},
        {"address": URL},
        {"url": f"postgresql://buyer:p@ss:{PASSWORD}@host/db"},
    ],
)
def test_a_refusal_does_not_repeat_the_password(fields):
    """The message of a validation error may be logged, so it does not contain the password."""
    with pytest.raises(ValidationError) as caught:
        GenerationLedger.model_validate(fields)
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value)


@pytest.mark.parametrize("show", [repr, str, "{}".format, GenerationLedger.model_dump_json])
def test_a_block_never_prints_its_url(show):
    """A printed block does not show its URL, because the URL contains a password."""
    shown = show(block())
    assert PASSWORD not in shown
    assert "***" in shown


def test_a_misspelt_field_is_refused():
    """An unknown field is an error and is not silently ignored."""
    with pytest.raises(ValidationError, match=r"(?s)uri.*Extra inputs are not permitted"):
        GenerationLedger.model_validate({"url": URL, "uri": URL})


def test_a_url_is_required():
    """A block needs a URL."""
    with pytest.raises(ValidationError, match=r"(?s)url.*Field required"):
        GenerationLedger.model_validate({})


async def test_a_block_leads_to_its_ledger(tmp_path):
    """A block returns the same ledger each time, so that a process has one connection to it."""
    made = block(f"sqlite:///{tmp_path}/ledger.db")
    ledger = made.get_ledger()
    assert ledger is block(f"sqlite:///{tmp_path}/ledger.db").get_ledger()
    wish = Intent(idempotency_key="sku-17", base_url="https://api.example.com")
    await ledger._insert(wish, State.SUBMITTED, "claim", task_id="task-1")
    assert [entry.task_id for entry in await made.get_ledger().entries()] == ["task-1"]
    await ledger.database.close()


@pytest.mark.heavy
def test_a_block_leads_to_a_ledger_in_postgresql(postgres):
    """A block can point to a ledger in PostgreSQL, which several machines share."""
    ledger = block(postgres.create_database()).get_ledger()
    assert ledger.database.is_shared
    assert asyncio.run(ledger.entries()) == []
    asyncio.run(ledger.database.close())


@pytest.fixture(scope="module")
def saved(prefect_server) -> Iterator[GenerationLedger]:
    """Save a block on a real server."""
    made = block()
    made.save("ledger-test", overwrite=True)
    yield made
    GenerationLedger.delete("ledger-test")


@pytest.mark.server
def test_what_was_saved_is_what_is_loaded(saved):
    """A block that is saved and loaded again is equal, password included."""
    loaded: Any = GenerationLedger.load("ledger-test")
    assert loaded.url.get_secret_value() == URL


@pytest.mark.server
async def test_a_block_is_loaded_by_its_type_and_name(saved):
    """`generation-ledger/NAME` is enough, both in a script and in an environment variable."""
    loaded = await Block.aload("generation-ledger/ledger-test")
    assert isinstance(loaded, GenerationLedger)
    assert PASSWORD not in loaded.get_ledger().database.redacted_url
    assert "db.example.com" in loaded.get_ledger().database.redacted_url


@pytest.mark.server
def test_the_server_masks_the_url_unless_secrets_are_requested(saved, prefect_server):
    """The API masks the URL with asterisks unless secrets are requested."""
    address = f"{prefect_server}/block_documents/{saved._block_document_id}"
    shown = httpx.get(address).raise_for_status()
    assert shown.json()["data"]["url"] == "*" * 8
    assert PASSWORD not in shown.text


@pytest.mark.server
async def test_a_flow_takes_the_block_and_does_not_record_its_url(saved, prefect_server):
    """The parameters of a flow run, which everybody may read, do not contain the URL."""

    @flow(name="records-ledger")
    async def takes(ledger: GenerationLedger) -> str:
        return ledger.get_ledger().database.redacted_url

    reference: Any = {"$ref": {"block_document_id": str(saved._block_document_id)}}
    for given in (saved, reference):
        assert "db.example.com" in await takes(given)
    query = {"flows": {"name": {"any_": ["records-ledger"]}}}
    async with httpx.AsyncClient() as http:
        runs = await http.post(f"{prefect_server}/flow_runs/filter", json=query)
    assert len(runs.json()) == 2
    assert PASSWORD not in runs.text
