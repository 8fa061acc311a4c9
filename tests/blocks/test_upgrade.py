# SPDX-License-Identifier: Apache-2.0
"""Blocks saved by an earlier version of the package load in this version."""

from typing import Any

import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.utilities.dispatch import register_type
from pydantic import SecretStr

from prefect_cometapi.blocks import CometAPICredentials, GenerationLedger
from prefect_cometapi.flows import RunwayJob

pytestmark = pytest.mark.server


def earlier(kind: type[Block], **fields: tuple[type, object]) -> type[Block]:
    """Define the block of an earlier version: the same name, with only these fields."""
    body = {
        "__module__": kind.__module__,
        "__annotations__": {name: type_ for name, (type_, _) in fields.items()},
        "_block_type_name": kind._block_type_name,
        "_block_type_slug": kind.get_block_type_slug(),
    }
    return type(kind.__name__, (Block,), body)


def saved(kind: type[Block], **fields: tuple[type, object]) -> type[Block]:
    old = earlier(kind, **fields)
    old(**{name: value for name, (_, value) in fields.items()}).save("of-old", overwrite=True)
    kind.register_type_and_schema()
    register_type(kind)  # restores the current class, which other tests load
    return kind


def test_credentials_without_a_version_get_the_default(prefect_server):
    """Credentials that were saved with only an API key get the documented defaults."""
    saved(CometAPICredentials, api_key=(SecretStr, SecretStr("sk-of-old")))
    loaded: Any = CometAPICredentials.load("of-old")
    assert loaded.api_key.get_secret_value() == "sk-of-old"
    assert loaded.runway_version == CometAPICredentials.model_fields["runway_version"].default


def test_a_ledger_of_an_earlier_schema_leads_to_its_database(prefect_server, tmp_path):
    """A ledger block of an earlier schema, whose only field was the URL, keeps its URL."""
    url = SecretStr(f"sqlite:///{tmp_path}/old.db")
    saved(GenerationLedger, url=(SecretStr, url))
    loaded: Any = GenerationLedger.load("of-old")
    assert loaded.url == url


@pytest.mark.heavy
def test_a_job_without_key_and_storage_runs(prefect_server, sandbox, image):
    """New fields of a saved job have defaults that keep the earlier behaviour."""
    saved(RunwayJob, request=(dict, image))

    @flow
    def teaser() -> bool:
        loaded: Any = RunwayJob.load("of-old")
        return bool(loaded.trigger().fetch_result().videos)

    assert teaser()


@pytest.fixture
def image():
    return {"promptImage": "https://example.com/cat.jpg"}
