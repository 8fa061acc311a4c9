# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed, stopped or duplicated in the middle of a paid generation."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as RunState
from prefect.states import Cancelled, Cancelling, Crashed

from prefect_cometapi.flows import collect, image_to_video
from prefect_cometapi.flows.runtime.hooks import release_leases
from prefect_cometapi.flows.runtime.sync import run_sync
from prefect_cometapi.runway import Ledger, State
from prefect_cometapi.runway.ledger.owners import owner_name
from prefect_cometapi.runway.processes import is_dead

pytestmark = [pytest.mark.server]

SYNC = (
    "from prefect_cometapi.flows import image_to_video as make; "
    "print(make({}, idempotency_key={!r}))"
)
ASYNC = (
    "import asyncio; from prefect_cometapi.flows import aimage_to_video as make; "
    "print(asyncio.run(make({}, idempotency_key={!r})))"
)

NOTEBOOK = """
from prefect_cometapi.flows import image_to_video as make
import asyncio
async def cell():
    print(make({}, idempotency_key={!r}))
asyncio.new_event_loop().run_until_complete(cell())
"""
COLLECT = "from prefect_cometapi.flows import collect; print(collect())"


@pytest.fixture(autouse=True)
def patience(sandbox, monkeypatch) -> None:
    """Use long timeouts for a busy machine, and a short poll interval."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "600")
    monkeypatch.setenv("COMETAPI_POLL_INTERVAL", "0.2")


def count(sandbox, route: str) -> int:
    return len([request for request in sandbox.requests if request.route == route])


@pytest.fixture
def polling(sandbox, finish_rendering, start, wait_until) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts a process with a generation that it polls."""

    def begin(*arguments: str, **env: str) -> subprocess.Popen[str]:
        process = start(*arguments, **env)
        before = count(sandbox, "task")

        def has_polled() -> bool | None:
            assert process.poll() is None, "it ended by itself"
            return True if count(sandbox, "task") > before + 1 else None

        wait_until(has_polled, seconds=120)
        return process

    return begin


def check_that_collect_finishes_it(sandbox, ledger_probe, key: str, finish_rendering) -> None:
    """Check that the paid clip arrives, and that it was paid for once."""
    finish_rendering()
    result = collect()
    assert (result.stored, result.unfinished, result.uncertain) == (1, 0, 0)
    assert Path(*result.generations[0].uris).exists()
    assert (ledger_probe[key].state, ledger_probe[key].owner) == (State.STORED, None)
    assert len(sandbox.accepted) == count(sandbox, "create") == 1


@pytest.mark.slow
@pytest.mark.heavy
def test_what_a_killed_process_waited_for_is_finished_at_once(
    sandbox, image, ledger_probe, polling, finish_rendering
):
    """After SIGKILL, the next run on this machine continues before the lease expires."""
    process = polling("-c", SYNC.format(image, "killed"))
    assert run_sync(ledger_probe.ledger.leases.is_active(ledger_probe["killed"]))
    process.kill()
    process.wait()
    left = ledger_probe["killed"]
    assert left.owner
    assert is_dead(left.owner)
    assert left.lease_left
    assert left.lease_left > 0
    assert not run_sync(ledger_probe.ledger.leases.is_active(left))
    check_that_collect_finishes_it(sandbox, ledger_probe, "killed", finish_rendering)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "number"),
    [
        pytest.param(SYNC, signal.SIGTERM, id="sync, SIGTERM"),
        pytest.param(SYNC, signal.SIGINT, id="sync, SIGINT", marks=pytest.mark.heavy),
        pytest.param(ASYNC, signal.SIGTERM, id="async, SIGTERM", marks=pytest.mark.heavy),
        pytest.param(ASYNC, signal.SIGINT, id="async, SIGINT", marks=pytest.mark.heavy),
        pytest.param(NOTEBOOK, signal.SIGINT, id="notebook, SIGINT"),
    ],
)
@pytest.mark.heavy
def test_a_process_that_is_told_to_stop_hands_its_work_over(
    sandbox, image, ledger_probe, polling, finish_rendering, capfd, script, number
):
    """SIGTERM or SIGINT ends the polling and releases the work, and a collector finishes it."""
    process = polling("-c", script.format(image, "stopped"))
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert printed == ""
    left = ledger_probe["stopped"]
    assert (left.state, left.owner) == (State.SUBMITTED, None)
    assert "the generation continues at the service" in left.note
    assert f"Generation {left.task_id} is paid for" in capfd.readouterr().err
    check_that_collect_finishes_it(sandbox, ledger_probe, "stopped", finish_rendering)


@pytest.mark.slow
@pytest.mark.heavy
def test_a_process_that_is_told_to_stop_inside_the_post_leaves_it_uncertain(
    sandbox, image, ledger_probe, start, wait_until
):
    """SIGTERM during the POST leaves a possibly charged submission, which is not sent again."""
    sandbox.add_fault("create:silent-after:value=600")
    process = start("-c", SYNC.format(image, "unanswered"))
    wait_until(lambda: sandbox.accepted or None, seconds=120)
    process.terminate()
    process.communicate(timeout=60)
    left = ledger_probe["unanswered"]
    assert (left.state, left.owner, left.attempts) == (State.UNCERTAIN, None, 1)
    result = collect()
    assert (result.uncertain, result.stored) == (1, 0)
    assert len(sandbox.accepted) == count(sandbox, "create") == 1


@pytest.mark.slow
@pytest.mark.heavy
def test_a_collector_that_is_stopped_leaves_its_work_to_the_next(
    sandbox, ledger_probe, polling, finish_rendering
):
    """A collector that gets SIGTERM ends soon, and the next one finishes its work at once."""
    for key in "ab":
        ledger_probe.buy(key)
    process = polling("-c", COLLECT)
    process.terminate()
    process.communicate(timeout=60)
    assert [entry.owner for entry in ledger_probe.all()] == [None, None]
    finish_rendering()
    assert collect().stored == 2
    assert len(sandbox.accepted) == count(sandbox, "asset") == 2


@pytest.mark.heavy
def test_a_false_alarm_takes_no_work_away(
    sandbox, image, ledger_probe, polling, finish_rendering, caplog
):
    """A run that is wrongly marked as crashed keeps its lease, and ends well."""
    process = polling("-c", SYNC.format(image, "alive"))
    entry = ledger_probe["alive"]
    release_leases(image_to_video, run_of(entry.flow_run_id), Crashed())
    assert ledger_probe["alive"].owner == entry.owner
    assert collect().generations == ()
    finish_rendering()
    assert process.wait(timeout=60) == 0
    assert ledger_probe["alive"].state is State.STORED
    assert len(sandbox.accepted) == 1


def run_of(flow_run_id: str | None) -> FlowRun:
    """Return a flow run as hooks get it."""
    return FlowRun(id=UUID(flow_run_id) if flow_run_id else uuid4(), flow_id=uuid4())


# The hook by itself.


@pytest.fixture
def held(ledger_probe, sandbox, prefect_server):
    """Return the flow run of a dead process that held a bought generation."""
    run = run_of(None)
    ledger_probe.buy("held")
    gone = owner_name(str(run.id)).replace(f":{os.getpid()}:", ":999999999:")
    assert run_sync(ledger_probe.ledger.leases.acquire("held", gone))
    return run


@pytest.mark.parametrize("state", [Crashed(), Cancelling(), Cancelled()], ids=lambda s: s.name)
def test_the_hook_lets_go_called_by_position_and_by_keyword(ledger_probe, held, state):
    """The hook releases the run's leases, by position or keyword, and notes the reason."""
    release_leases(image_to_video, held, state)
    assert (ledger_probe["held"].owner, ledger_probe["held"].state) == (None, State.SUBMITTED)
    assert ledger_probe["held"].note == f"its run ended: {state.name}"
    release_leases(flow=image_to_video, flow_run=held, state=state)
    assert ledger_probe["held"].owner is None


def test_the_hook_tells_what_is_paid_for(ledger_probe, sandbox, history, caplog):
    """The log names each bought and undelivered generation of the run, with the commands."""
    state: RunState = image_to_video(
        {"promptImage": "https://example.com/a.jpg"},
        idempotency_key="told",
        wait=False,
        return_state=True,
    )
    run = run_of(str(state.state_details.flow_run_id))
    release_leases(image_to_video, run, Cancelled())
    (job,) = sandbox.accepted
    words = f"Generation {job.task_id} is paid for and continues at CometAPI. Finish it with "
    words += "`prefect-cometapi collect`"
    assert words in caplog.text
    assert "or give it up with `prefect-cometapi ledger abandon`" in caplog.text
    assert any(words in line for line in history.logs(run.id, until="paid for"))


def test_the_hook_marks_an_unanswered_submission(ledger_probe, held, sandbox, image):
    """A process that died during its POST leaves an uncertain key without waiting for a lease."""
    from prefect_cometapi.runway.ledger.entry import Intent

    gone = owner_name(str(held.id)).replace(f":{os.getpid()}:", ":999999999:")
    intent = Intent(idempotency_key="asked", base_url=sandbox.url, flow_run_id=str(held.id))
    assert run_sync(ledger_probe.ledger._insert(intent, State.CLAIMED, "c1", owner=f"{gone}#c1"))
    release_leases(image_to_video, held, Crashed())
    assert (ledger_probe["asked"].state, ledger_probe["asked"].owner) == (State.UNCERTAIN, None)
    assert count(sandbox, "create") == 1  # This is the fixture's purchase.


@pytest.mark.parametrize("url", ["sqlite:////proc/nowhere/ledger.db", "generation-ledger/missing"])
def test_the_hook_only_logs_when_the_ledger_is_away(held, monkeypatch, caplog, url):
    """An unreachable ledger does not break a run's end, and the log says that the leases expire."""
    monkeypatch.setenv("COMETAPI_LEDGER_URL", url)
    release_leases(image_to_video, held, Crashed())
    assert "the leases of this run expire by themselves" in caplog.text


@pytest.mark.heavy
def test_a_holder_in_another_place_lapses(ledger_probe, held, sandbox):
    """An owner on another machine or in another container is over when its lease expires."""
    distant = "far-away:17:0123456789ab:4711|its-run"
    hasty = Ledger(os.environ["COMETAPI_LEDGER_URL"], lease=0.0)
    ledger_probe.decide("held", State.ABANDONED)
    ledger_probe.buy("distant")
    assert run_sync(ledger_probe.ledger.leases.acquire("distant", distant))
    assert run_sync(ledger_probe.ledger.leases.is_active(ledger_probe["distant"]))
    assert collect().generations == ()
    assert run_sync(hasty.leases.acquire("distant", distant))
    assert not run_sync(ledger_probe.ledger.leases.is_active(ledger_probe["distant"]))
    assert collect().stored == 1
    run_sync(hasty.database.close())


# One run, twice.


@pytest.mark.slow
@pytest.mark.heavy
def test_two_live_executions_of_one_run_buy_once(
    sandbox, image, ledger_probe, history, start, finish_rendering, wait_until
):
    """Two executions of one flow run at the same time end with one purchase."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(image_to_video, parameters={"request": image})
    arguments = ("-m", "prefect.flow_engine", "prefect_cometapi.flows.image_to_video")
    both = [start(*arguments, PREFECT__FLOW_RUN_ID=str(run.id)) for _ in range(2)]
    wait_until(lambda: count(sandbox, "task") or None, seconds=120)
    history.logs(run.id, until="waiting for", seconds=120)
    finish_rendering()
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    history.logs(run.id, until="already stored")
    (entry,) = ledger_probe.all()
    assert (entry.state, entry.owner, entry.attempts) == (State.STORED, None, 1)
    assert len(sandbox.accepted) == count(sandbox, "create") == count(sandbox, "asset") == 1
    with get_client(sync_client=True) as client:
        ended = client.read_flow_run(run.id)
    assert ended.state
    assert ended.state.is_completed()
