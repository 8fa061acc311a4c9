# SPDX-License-Identifier: Apache-2.0
"""Requests to signed addresses leave no spans, with and without an instrumentation."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from prefect_cometapi.runway import http_clients
from prefect_cometapi.runway.http_clients import untraced

UTILS = "opentelemetry.instrumentation.utils"


@pytest.fixture(autouse=True)
def looked_up_again() -> Iterator[None]:
    """Forget the instrumentation that was found before, and afterwards that of the test."""
    http_clients._suppressor.cache_clear()
    yield
    http_clients._suppressor.cache_clear()


def test_an_instrumentation_is_told_to_record_nothing(monkeypatch):
    """OpenTelemetry's own context manager is used, since its key may change."""
    events: list[str] = []

    @contextmanager
    def suppress() -> Iterator[None]:
        events.append("suppressed")
        yield
        events.append("recorded again")

    utils = ModuleType(UTILS)
    vars(utils)["suppress_http_instrumentation"] = suppress
    monkeypatch.setitem(sys.modules, UTILS.rpartition(".")[0], ModuleType("instrumentation"))
    monkeypatch.setitem(sys.modules, UTILS, utils)
    with untraced():
        events.append("request")
    assert events == ["suppressed", "request", "recorded again"]


def test_nothing_happens_where_no_instrumentation_is_installed(monkeypatch):
    """Prefect needs only the API of OpenTelemetry, which records no requests."""
    monkeypatch.setitem(sys.modules, UTILS, None)
    with untraced():
        pass
