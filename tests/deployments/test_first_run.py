# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation, word for word, from the wheel to a scheduled run."""

import resource
import time
from statistics import median

import kubernetes_validate
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from ..conftest import KEY
from ..first_run import COMMANDS, TO_CONTAINERS, User, first_day, own_server
from ..installation import install
from ..platforms import KUBERNETES

pytestmark = pytest.mark.server

MINUTE = 60.0
WAITS = 20.0
"""Seconds of waiting in it: for the schedule, and for the next query of the worker."""

REFERENCE_LOOP = 0.0165
"""Seconds of `loop_time` on an idle server processor of 2.4 GHz with Python 3.11."""


def loop_time() -> float:
    """Return the processor seconds of a loop of a million rounds, the median of nine."""
    found: list[float] = []
    for _ in range(9):
        begun = time.process_time()
        for _ in range(1_000_000):
            pass
        found.append(time.process_time() - begun)
    return median(found)


def processor_time() -> float:
    """Return the seconds of processor time of all processes that this one has started and ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_it_takes_four_commands_and_two_more_to_containers():
    """Four commands lead from the installation to the worker, and two more to Kubernetes."""
    assert len(COMMANDS) == 4
    assert COMMANDS[0].startswith("pip install ")
    assert COMMANDS[-1] == "prefect worker start --pool videos"
    assert len(TO_CONTAINERS) == 2


@pytest.mark.heavy
async def test_a_schedule_makes_a_video_within_a_minute_and_a_pod_is_two_commands_away(
    sandbox, wheel, tmp_path
):
    """The commands and the wheel alone make a video on a schedule, and then a Kubernetes job."""
    # The machine has the dependencies. If it is busy with other things, the processor time counts,
    # which grows with a slower processor, or one whose cores run two threads each.
    slow = max(1.0, loop_time() / REFERENCE_LOOP)
    begun, used = time.monotonic(), processor_time()
    scripts = install(wheel, tmp_path / "venv")
    installed = time.monotonic() - begun
    with own_server(tmp_path) as api:
        took = first_day(scripts, api, tmp_path)
        assert sandbox.accepted
        assert list((tmp_path / "videos").glob("*.mp4"))
        slow = max(slow, loop_time() / REFERENCE_LOOP)
        used = (processor_time() - used) / slow
        User(scripts, api, tmp_path).run(TO_CONTAINERS)
        with temporary_settings({PREFECT_API_URL: api}):
            async with get_client() as client:
                job = await KUBERNETES.job(client, "image-to-video/daily")
    kubernetes_validate.validate(job.job_manifest, kubernetes_validate.latest_version())
    pod = KUBERNETES.container(job)
    assert pod.image == "registry.example.com/videos:0.1.0"
    assert pod.env["COMETAPI_KEY"] == KEY
    assert min(installed + sum(took.values()), used + WAITS) < MINUTE
