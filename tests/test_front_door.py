# SPDX-License-Identifier: Apache-2.0
"""Everything that users need can be imported from one place, and stays there."""

import pickle
import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect.serializers import JSONSerializer

import prefect_cometapi
from prefect_cometapi import blocks, flows, runway

PUBLIC = {"blocks": blocks, "flows": flows, "runway": runway}
RESULT = runway.GenerationResult(
    idempotency_key="sku-17",
    task_id="3d957031",
    status=runway.Status.SUCCEEDED,
    videos=(),
    polls=1,
    waited=1.5,
    submitted_at=datetime(2026, 11, 28, tzinfo=UTC),
)


SPENDING = runway.Spending(seconds=5.0)
COLLECTED = flows.Collected(idempotency_key="sku-17", task_id="3d957031", state=runway.State.STORED)
STORED = {
    "generation": RESULT,
    "batch": runway.BatchResult(idempotency_key="catalogue", results=(), spending=SPENDING),
    "collect": flows.CollectResult(
        stored=1, failed=0, unfinished=0, uncertain=0, generations=(COLLECTED,)
    ),
}
"""One result of each kind of flow, with every class that it consists of."""


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_can_be_imported_from_the_front_door(package):
    """Each public name of the top-level package is the same object as in its subpackage."""
    for name in PUBLIC[package].__all__:
        assert getattr(prefect_cometapi, name) is getattr(PUBLIC[package], name)


def test_the_front_door_has_no_other_names():
    """The top-level package offers only the names of its subpackages and the version."""
    names = {name for package in PUBLIC.values() for name in package.__all__}
    assert set(prefect_cometapi.__all__) == names | {"__version__"}
    assert sorted(dir(prefect_cometapi)) == sorted(prefect_cometapi.__all__)


def test_a_misspelt_name_is_an_attribute_error():
    """A misspelt name raises AttributeError, as in any other module."""
    with pytest.raises(AttributeError, match="image_to_vidoe"):
        _ = prefect_cometapi.image_to_vidoe


def test_the_version_is_the_installed_one():
    """The version is that of the installed distribution, so that a bug report can name it."""
    assert prefect_cometapi.__version__ == "0.1.0"


def test_the_import_loads_nothing_else():
    """An import of one name loads only what that name needs."""
    program = (
        "import prefect_cometapi, sys; print('prefect' in sys.modules, 'httpx' in sys.modules)"
    )
    words = [sys.executable, "-c", program]
    read = subprocess.run(words, capture_output=True, text=True, check=True)
    assert read.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("result", STORED.values(), ids=STORED)
def test_stored_results_name_public_modules_only(result):
    """Moving a module breaks no result that Prefect or a pickle has stored."""
    stored = JSONSerializer().dumps(result)
    assert JSONSerializer().loads(stored) == result
    pickled = pickle.dumps(result)
    assert pickle.loads(pickled) == result
    for text in (stored.decode(), pickled.decode("latin-1")):
        named = set(re.findall(r"prefect_cometapi(?:\.[a-z]\w*)*", text))
        assert named
        assert named <= {"prefect_cometapi.runway", "prefect_cometapi.flows"}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_classes_name_their_package_as_their_module(package):
    """Tracebacks, stored results and code examples show the package from which users import."""
    found: list[Any] = [getattr(PUBLIC[package], name) for name in PUBLIC[package].__all__]
    modules = {kind.__module__ for kind in found if isinstance(kind, type)}
    assert modules == {f"prefect_cometapi.{package}"}


def test_one_command_registers_every_block():
    """``prefect block register -m prefect_cometapi`` finds the blocks despite the lazy imports."""
    from prefect.blocks.core import Block

    found = [getattr(prefect_cometapi, name) for name in dir(prefect_cometapi)]
    kinds = {kind.__name__ for kind in found if isinstance(kind, type) and issubclass(kind, Block)}
    assert kinds == {"CometAPICredentials", "GenerationLedger", "RunwayJob"}
