# SPDX-License-Identifier: Apache-2.0
"""The owner of a lease is named, and an ended process is recognised as ended."""

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
from prefect_cometapi.runway.ledger.owners import describe_owner, owner_name
from prefect_cometapi.runway.processes import (
    Process,
    is_alive,
    is_dead,
    process_of,
    this_process,
)

from ..factories import dead_owner, distant_owner

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


@pytest.fixture
def sleeper():
    """Start a process that runs until the test ends; it names itself."""
    code = (
        "import sys; from prefect_cometapi.runway.ledger.owners import owner_name\n"
        "print(owner_name('sleeper'), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def of(**changes) -> str:
    """Return this process as an owner, with some changes."""
    return f"{replace(this_process(), **changes)}|run"


@on_linux
def test_a_process_that_was_killed_is_gone(sleeper):
    """A lease of a dead process is not waited for, and one of a live process is not taken over."""
    process, holder = sleeper
    assert not is_dead(holder)
    assert is_alive(holder)
    process.kill()
    process.communicate()
    assert is_dead(holder)
    assert not is_alive(holder)
    assert is_dead(dead_owner())


@on_linux
def test_a_process_that_nobody_buried_is_gone(sleeper):
    """A zombie does no work, though its process id is still in use."""
    process, holder = sleeper
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}/stat").exists()
    assert is_dead(holder)


def test_this_process_is_not_gone():
    """This process counts as alive under any run."""
    assert not is_dead(owner_name("a run"))


@on_linux
def test_a_number_that_was_given_to_another_process_is_no_proof_of_life():
    """The start time tells two processes with the same id apart."""
    assert is_dead(of(started="1"))
    assert not is_dead(of())


def test_a_process_of_another_machine_or_container_is_not_judged():
    """A process id has no meaning on another machine."""
    assert not is_dead(distant_owner())
    assert not is_alive(distant_owner())
    assert not is_dead(of(space="0123456789ab", pid=2**22 + 1))
    assert not is_dead(of(space="", pid=2**22 + 1))


@on_linux
def test_a_number_that_no_process_has_is_gone():
    """A missing process is dead only if its id belongs to this machine."""
    assert is_dead(of(pid=2**22 + 1))


@given(text=st.text(max_size=60))
def test_text_that_is_no_holder_is_not_judged(text):
    """Invalid text in the ledger does not count as a dead process."""
    assert not is_dead(text)
    assert isinstance(describe_owner(text), str)


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
    """An incomplete name proves nothing."""
    me = this_process()
    assert not is_dead(f"{shape.format(pid=me.pid, space=me.space)}|run")


def test_a_number_in_odd_digits_is_not_judged():
    """Non-ASCII digits are not read as a number and raise no error."""
    assert not is_dead(f"host:²:{this_process().space}:1|run")


def test_a_holder_is_shown_to_people_with_its_run_and_its_place():
    """The shown name has host and process id, without technical details."""
    me = this_process()
    expected = f"flow run 'a|b' on {me.host}, process {os.getpid()}"
    assert describe_owner(owner_name("flow run 'a|b'")) == expected
    assert describe_owner(f"{owner_name('nightly')}#claim").startswith("nightly on ")
    assert describe_owner(distant_owner("nightly")) == "nightly on far-away, process 17"


def test_the_process_of_a_holder_is_the_same_for_all_its_runs():
    """A run may have any name."""
    for run in ("", "a", "a|b", "a:b#c"):
        assert process_of(owner_name(run)) == str(this_process())


@on_linux
def test_a_forked_child_is_another_process():
    """A lease of the child is not taken for one of its parent."""
    reader, writer = os.pipe()
    mine = owner_name("run")
    child = os.fork()
    if child == 0:  # pragma: no cover -- the child leaves without a report
        os.write(writer, owner_name("run").encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 1000).decode()
    assert process_of(theirs) != process_of(mine)
    assert process_of(theirs).split(":")[1] == str(child)
    assert process_of(theirs).split(":")[2] == process_of(mine).split(":")[2]
    assert is_dead(theirs)


def test_a_host_name_cannot_break_the_form_of_a_holder(monkeypatch):
    """A colon or a bar in a host name would shift the parts of the name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "a:b|c" + "d" * 200)
    monkeypatch.setattr(processes, "_process", processes._process.__wrapped__)
    me = this_process()
    assert me.host == ("a-b-c" + "d" * 200)[:100]
    assert not is_dead(owner_name("run"))
    assert describe_owner(owner_name("run")) == f"run on {me.host}, process {os.getpid()}"


def test_a_system_without_proc_judges_nobody(monkeypatch, tmp_path):
    """Without /proc only the lease decides, so that no live process counts as dead."""
    before = of(pid=2**22 + 1)
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr(processes, "_process", processes._process.__wrapped__)
    me = this_process()
    assert (me.space, me.started) == ("", "")
    assert not is_dead(before)
    assert not is_dead(owner_name("run"))


@on_linux
def test_a_name_with_brackets_and_spaces_hides_no_process(tmp_path, monkeypatch):
    """State and start time are read correctly, whatever name a program has."""
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
    """Each part of a name distinguishes processes."""
    me = Process("h", "s", 1, "2")
    others = [replace(me, **change) for change in ({"host": "x"}, {"pid": 3}, {"started": "9"})]
    assert len({str(each) for each in [me, *others]}) == 4


@on_linux
def test_a_process_that_is_not_shown_to_us_is_not_gone(sleeper, tmp_path, monkeypatch):
    """With hidepid, /proc shows another user's process only after it has ended."""
    process, holder = sleeper
    hiding = tmp_path / "proc"
    (hiding / "sys/kernel/random").mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    (hiding / "sys/kernel/random/boot_id").write_text(boot)
    for shown in ("self", str(os.getpid())):
        (hiding / shown).symlink_to(f"/proc/{os.getpid()}")
    monkeypatch.setattr(processes, "_PROC", hiding)
    assert not is_dead(holder)
    process.kill()
    process.communicate()
    assert is_dead(holder)


@on_linux
def test_a_process_that_we_may_not_signal_is_there(monkeypatch):
    """A process of another user counts as alive."""

    def refused(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert not is_dead(of(pid=2**22 + 1))
