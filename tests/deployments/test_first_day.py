# SPDX-License-Identifier: Apache-2.0
"""The page of the first day, word for word, from the demo to a fixed batch."""

from contextlib import ExitStack

import pytest

from ..cluster import free_port
from ..first_day import COMMANDS, PORTS, Shell, walk
from ..installation import install


def test_the_page_starts_with_the_installation_and_ends_with_the_fixed_batch():
    """The last command is the one that failed before, so that its success is the proof."""
    assert COMMANDS[0] == "pip install prefect-cometapi"
    assert COMMANDS.count(COMMANDS[-1]) == 2
    assert COMMANDS[-1].startswith("prefect-cometapi batch ")


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.server
def test_a_new_user_gets_from_the_demo_to_a_fixed_batch(wheel, tmp_path):
    """Each command of the page does what the page says; the batch has five videos at the end."""
    scripts = install(wheel, tmp_path / "venv")
    (tmp_path / "work").mkdir()
    ports = {shown: str(free_port()) for shown in PORTS}
    with ExitStack() as stack:
        shell = Shell(scripts, tmp_path / "work", ports, stack)
        typed = list(walk(shell))
    assert typed == COMMANDS[1:]
    assert "5 stored in" in shell.output
    assert len(list((tmp_path / "work" / "videos").glob("*-catalogue-*.mp4"))) == 5
