# SPDX-License-Identifier: Apache-2.0
"""From the wheel to a scheduled run on a worker, in the commands of the page, word for word."""

import pytest

from ..first_run import COMMANDS, first_day, own_server

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.packaging]


def test_it_takes_five_commands_at_most():
    """The first installs, and the last is the worker."""
    assert len(COMMANDS) <= 5
    assert COMMANDS[0] == "pip install prefect-cometapi"
    assert COMMANDS[-1] == "prefect worker start --pool videos"


def test_a_schedule_makes_a_video_after_the_commands_of_the_page(sandbox, installed, tmp_path):
    """With the package alone: no repository, no code, no file."""
    with own_server(tmp_path) as api:
        first_day(installed, api, tmp_path)
    assert sandbox.accepted
    assert list((tmp_path / "videos").glob("*.mp4"))
