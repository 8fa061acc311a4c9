# SPDX-License-Identifier: Apache-2.0
"""Prefect's standard test suite for blocks, run without a network."""

import io

import pytest
from PIL import Image
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite


class OfflineBlockSuite(BlockStandardTestSuite):
    """Prefect's standard block tests, with the logo drawn locally instead of downloaded."""

    @pytest.fixture(autouse=True)
    def logo_without_network(self, monkeypatch):
        def drawn(_url: str) -> io.BytesIO:
            logo = io.BytesIO()
            Image.new("RGB", (200, 200), "white").save(logo, "PNG")
            return io.BytesIO(logo.getvalue())

        monkeypatch.setattr("prefect.testing.standard_test_suites.blocks.urlopen", drawn)
