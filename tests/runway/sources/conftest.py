# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of sources: an object store in memory."""

import pytest

from .stores import signing_store


@pytest.fixture
def store(monkeypatch):
    """Register the object store as gs://, empty and without errors."""
    return signing_store(monkeypatch)
