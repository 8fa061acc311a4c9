# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation work on a real server."""

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from prefect_cometapi.runway import GenerationFailed, State
from prefect_cometapi.sandbox import Fault

pytestmark = pytest.mark.server

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(database: Path, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(statement).fetchall()


@pytest.fixture
def shop(tmp_path) -> Path:
    """Create a table of three products."""
    database = tmp_path / "shop.db"
    table(database, "CREATE TABLE products (sku TEXT, photo TEXT, name TEXT)")
    for sku in ("cup", "jug", "pot"):
        photo = f"https://example.com/{sku}.jpg"
        table(database, f"INSERT INTO products VALUES ('{sku}', '{photo}', 'a {sku}')")
    return database


@pytest.mark.heavy
def test_a_product_table_gets_its_clips(prefect_server, sandbox, shop, ledger_probe):
    """A failed product is missing from the table, and is filled once the user allows it again."""
    catalogue = example("catalogue")
    sandbox.add_fault(Fault.parse("create:failed:times=1"))
    assert catalogue.nightly_clips(str(shop)) == 2
    (failed,) = [entry for entry in ledger_probe.all() if entry.state is State.FAILED]
    ledger_probe.decide(failed.idempotency_key, State.RESUBMIT_ALLOWED)
    assert catalogue.nightly_clips(str(shop)) == 1
    assert catalogue.nightly_clips(str(shop)) == 0
    clips = table(shop, "SELECT sku, uri, sha256, seconds FROM clips")
    assert len(clips) == 3
    for _sku, uri, sha256, seconds in clips:
        assert Path(uri).is_file()
        assert len(sha256) == 64
        assert seconds > 0


@pytest.mark.heavy
def test_a_table_that_was_lost_is_filled_without_a_purchase(prefect_server, sandbox, shop):
    """A lost table is filled again from the keys, without a purchase."""
    catalogue = example("catalogue")
    assert catalogue.nightly_clips(str(shop)) == 3
    table(shop, "DROP TABLE clips")
    assert catalogue.nightly_clips(str(shop)) == 3
    assert len(sandbox.accepted) == 3


@pytest.mark.heavy
async def test_an_async_flow_makes_two_cuts_at_once(prefect_server, sandbox):
    """An async flow makes two videos at once, and a second run costs nothing."""
    campaign = example("campaign")
    first = await campaign.campaign("https://example.com/cat.jpg", "cat")
    assert first == await campaign.campaign("https://example.com/cat.jpg", "cat")
    assert set(first) == {"website", "phone"}
    assert len(sandbox.accepted) == 2


@pytest.mark.heavy
def test_the_steps_run_on_dask(prefect_server, sandbox):
    """Each step runs as a task on a Dask worker, with one purchase for each key across runs."""
    on_dask = example("on_dask")
    photos = {name: f"https://example.com/{name}.jpg" for name in ("cat", "dog", "fox")}
    uris = on_dask.on_dask(photos)
    assert all(Path(uri).is_file() for uri in uris.values())
    assert on_dask.on_dask(photos) == uris
    assert len(sandbox.accepted) == 3


@pytest.mark.heavy
def test_a_failure_on_dask_is_raised_as_it_was(prefect_server, sandbox):
    """A generation that fails on a Dask worker raises its own error, with all that it knows."""
    sandbox.add_fault(Fault.parse("create:failed:times=1"))
    with pytest.raises(GenerationFailed) as caught:
        example("on_dask").on_dask({"cat": "https://example.com/cat.jpg"})
    assert (caught.value.code, caught.value.idempotency_key) == (
        "INTERNAL.BAD_OUTPUT.CODE01",
        "cat",
    )
    assert caught.value.task_id == sandbox.accepted[0].task_id
    assert "Next: change the image or the prompt" in str(caught.value)
