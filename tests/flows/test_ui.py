# SPDX-License-Identifier: Apache-2.0
"""The Prefect UI in a real browser."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "screenshots.py"


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium on this machine")
def test_the_ui_shows_retries_posters_and_what_was_collected(tmp_path):
    """Chromium shows the run with its retry, the poster as a picture, and a collector's table."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("run", "collected", "poster", "gallery"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
