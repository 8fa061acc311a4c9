# SPDX-License-Identifier: Apache-2.0
"""A command that is typed again after its output failed does not hide the first purchase."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).parent / "prefect-cometapi"
WORDS = ["image-to-video", "https://example.com/cat.jpg", "slow zoom"]


@pytest.mark.server
def test_a_command_that_is_typed_twice_names_the_first_purchase(prefect_server, sandbox, tmp_path):
    """A command was typed again in a cp1252 terminal; the first file is named before it buys."""
    env = {
        **os.environ,
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONIOENCODING": "cp1252",
    }

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([COMMAND, *WORDS, *words], env=env, capture_output=True, check=False)

    first = run()
    assert (first.returncode, first.stderr) == (0, b"")
    (video,) = (tmp_path / "videos").glob("*.mp4")
    again = run("--no-wait")
    assert again.returncode == 0
    told = again.stderr.decode("cp1252")
    assert f"the same request was bought a moment ago, and is stored: videos/{video.name}" in told
    assert "If it is wanted: --variation 2 or --idempotency-key KEY" in told
    assert len(sandbox.accepted) == 2
