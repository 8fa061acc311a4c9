# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation, word for word, from the wheel to a scheduled run."""

import pytest

from ..first_run import COMMANDS, first_day, own_server

pytestmark = pytest.mark.server


def test_it_takes_five_commands_at_most():
    """At most five commands are needed, from the installation to the worker."""
    assert len(COMMANDS) <= 5
    assert COMMANDS[0] == "pip install prefect-cometapi"
    assert COMMANDS[-1] == "prefect worker start --pool videos"


@pytest.mark.heavy
def test_a_schedule_makes_a_video_after_the_commands_of_the_page(sandbox, installed, tmp_path):
    """The commands and the package alone make a video on a schedule."""
    with own_server(tmp_path) as api:
        first_day(installed, api, tmp_path)
    assert sandbox.accepted
    assert list((tmp_path / "videos").glob("*.mp4"))
