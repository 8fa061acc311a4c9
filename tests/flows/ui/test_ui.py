# SPDX-License-Identifier: Apache-2.0
"""The Prefect UI in a real browser."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "screenshots.py"


@pytest.mark.heavy
def test_the_ui_shows_what_the_pages_show(chromium, tmp_path):
    """The UI shows retries, posters, tables, a validated form, automations and a block."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # docs/first_day.py takes the pictures of the walk.
    pictures = (SCRIPT.parent / "images").glob("*.png")
    shown = {picture.name for picture in pictures if not picture.name.startswith("walk-")}
    taken = {picture.name: picture.stat().st_size for picture in tmp_path.glob("*.png")}
    assert taken.keys() == shown
    assert min(taken.values()) > 20_000
