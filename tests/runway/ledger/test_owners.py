# SPDX-License-Identifier: Apache-2.0
"""Whoever works on a generation is named, and a process that has ended is known to have ended."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import processes
from prefect_cometapi.runway.ledger.owners import holder_name, shown_holder
from prefect_cometapi.runway.processes import (
    Process,
    is_certainly_gone,
    is_certainly_there,
    process_of,
    this_process,
)

from ..factories import dead_holder, distant_holder

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


@pytest.fixture
def sleeper():
    """A process that lives until the test ends, named by itself."""
    code = (
        "import sys; from prefect_cometapi.runway.ledger.owners import holder_name\n"
        "print(holder_name('sleeper'), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def of(**changes) -> str:
    """This process as a holder, but for some changes."""
    return f"{replace(this_process(), **changes)}|run"


@on_linux
def test_a_process_that_was_killed_is_gone(sleeper):
    """Nobody waits for a lease of the dead; as long as it lives, nothing is taken from it."""
    process, holder = sleeper
    assert not is_certainly_gone(holder)
    assert is_certainly_there(holder)
    process.kill()
    process.communicate()
    assert is_certainly_gone(holder)
    assert not is_certainly_there(holder)
    assert is_certainly_gone(dead_holder())


@on_linux
def test_a_process_that_nobody_buried_is_gone(sleeper):
    """A zombie works on nothing, though its number is still taken."""
    process, holder = sleeper
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}/stat").exists()
    assert is_certainly_gone(holder)


def test_this_process_is_not_gone():
    """Under whichever run."""
    assert not is_certainly_gone(holder_name("a run"))


@on_linux
def test_a_number_that_was_given_to_another_process_is_no_proof_of_life():
    """The start time tells them apart."""
    assert is_certainly_gone(of(started="1"))
    assert not is_certainly_gone(of())


def test_a_process_of_another_machine_or_container_is_not_judged():
    """Its number means nothing here."""
    assert not is_certainly_gone(distant_holder())
    assert not is_certainly_there(distant_holder())
    assert not is_certainly_gone(of(space="0123456789ab", pid=2**22 + 1))
    assert not is_certainly_gone(of(space="", pid=2**22 + 1))


@on_linux
def test_a_number_that_no_process_has_is_gone():
    """Only where the number would have to be here."""
    assert is_certainly_gone(of(pid=2**22 + 1))


@given(text=st.text(max_size=60))
def test_text_that_is_no_holder_is_not_judged(text):
    """Whatever stands in the ledger, it is not taken for a dead process."""
    assert not is_certainly_gone(text)
    assert isinstance(shown_holder(text), str)


@pytest.mark.parametrize(
    "shape",
    [
        "host:{pid}:{space}",
        "host:{pid}:{space}:1:2",
        "host::{space}:1",
        "host:x:{space}:1",
        "host:-1:{space}:1",
        "{pid}",
        ":::",
        "",
    ],
)
def test_a_damaged_holder_is_not_judged(shape):
    """Half a name proves nothing."""
    me = this_process()
    assert not is_certainly_gone(f"{shape.format(pid=me.pid, space=me.space)}|run")


def test_a_number_in_odd_digits_is_not_judged():
    """It is not read as a number, and breaks nothing."""
    assert not is_certainly_gone(f"host:²:{this_process().space}:1|run")


def test_a_holder_is_shown_to_people_with_its_run_and_its_place():
    """Host and process, not the technical rest."""
    me = this_process()
    expected = f"flow run 'a|b' on {me.host}, process {os.getpid()}"
    assert shown_holder(holder_name("flow run 'a|b'")) == expected
    assert shown_holder(f"{holder_name('nightly')}#claim").startswith("nightly on ")
    assert shown_holder(distant_holder("nightly")) == "nightly on far-away, process 17"


def test_the_process_of_a_holder_is_the_same_for_all_its_runs():
    """A run may be called anything."""
    for run in ("", "a", "a|b", "a:b#c"):
        assert process_of(holder_name(run)) == str(this_process())


@on_linux
def test_a_forked_child_is_another_process():
    """What it holds is not taken for its parent's."""
    reader, writer = os.pipe()
    mine = holder_name("run")
    child = os.fork()
    if child == 0:  # pragma: no cover -- the child leaves without a report
        os.write(writer, holder_name("run").encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 1000).decode()
    assert process_of(theirs) != process_of(mine)
    assert process_of(theirs).split(":")[1] == str(child)
    assert process_of(theirs).split(":")[2] == process_of(mine).split(":")[2]
    assert is_certainly_gone(theirs)


def test_a_host_name_cannot_break_the_form_of_a_holder(monkeypatch):
    """A colon or a bar in it would shift the parts."""
    monkeypatch.setattr(socket, "gethostname", lambda: "a:b|c" + "d" * 200)
    monkeypatch.setattr(processes, "_process", processes._process.__wrapped__)
    me = this_process()
    assert me.host == ("a-b-c" + "d" * 200)[:100]
    assert not is_certainly_gone(holder_name("run"))
    assert shown_holder(holder_name("run")) == f"run on {me.host}, process {os.getpid()}"


def test_a_system_without_proc_judges_nobody(monkeypatch, tmp_path):
    """There only the lease tells, so nobody is taken for dead by mistake."""
    before = of(pid=2**22 + 1)
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr(processes, "_process", processes._process.__wrapped__)
    me = this_process()
    assert (me.space, me.started) == ("", "")
    assert not is_certainly_gone(before)
    assert not is_certainly_gone(holder_name("run"))


@on_linux
def test_a_name_with_brackets_and_spaces_hides_no_process(tmp_path, monkeypatch):
    """A program may call itself anything; its state and start are read all the same."""
    fields = " ".join(str(number) for number in range(4, 30))
    for number, name in enumerate(["cat", "a) Z 1", "((("], start=1):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "stat").write_text(f"{number} ({name}) S {fields}")
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "stat").write_text("9 (half) S")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert {processes._state_and_start(number) for number in (1, 2, 3)} == {("S", "22")}
    assert processes._state_and_start(9) is None


def test_two_processes_differ_in_any_part():
    """The parts of a name are all of what tells processes apart."""
    me = Process("h", "s", 1, "2")
    others = [replace(me, **change) for change in ({"host": "x"}, {"pid": 3}, {"started": "9"})]
    assert len({str(each) for each in [me, *others]}) == 4


@on_linux
def test_a_process_that_is_not_shown_to_us_is_not_gone(sleeper, tmp_path, monkeypatch):
    """Of another user's, where /proc is mounted with hidepid: only that it has ended is told."""
    process, holder = sleeper
    hiding = tmp_path / "proc"
    (hiding / "sys/kernel/random").mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    (hiding / "sys/kernel/random/boot_id").write_text(boot)
    for shown in ("self", str(os.getpid())):
        (hiding / shown).symlink_to(f"/proc/{os.getpid()}")
    monkeypatch.setattr(processes, "_PROC", hiding)
    assert not is_certainly_gone(holder)
    process.kill()
    process.communicate()
    assert is_certainly_gone(holder)


@on_linux
def test_a_process_that_we_may_not_signal_is_there(monkeypatch):
    """Somebody else's."""

    def refused(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert not is_certainly_gone(of(pid=2**22 + 1))
