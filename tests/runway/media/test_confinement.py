# SPDX-License-Identifier: Apache-2.0
"""An exploited decoder can reach no files, network or processes.

All attempts are real. Where no separate process is needed, a thread is confined, because Linux
applies the restrictions to the thread that requests them.
"""

import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from prefect_cometapi.runway.media import confinement

LANDLOCK = (
    ctypes.CDLL(None).syscall(confinement.SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if sys.platform == "linux"
    else 0
)
pytestmark = pytest.mark.skipif(
    LANDLOCK < 1, reason="this kernel has no Landlock (Linux 5.13, booted with lsm=…,landlock)"
)
knows_machine = pytest.mark.skipif(
    os.uname().machine not in confinement.MACHINES or sys.maxsize < 1 << 32,
    reason="no call of this machine is denied",
)

T = TypeVar("T")
SECRET = b"sk-canary-in-memory"
PROGRAM = Path(__file__).with_name("taken_over.py")
REFUSED_BY_SOME_SYSTEMS = {
    "look into the parent's memory",  # Yama lets a process look into its children only
    "write into the parent's memory",
    "compare itself with the victim",
    "trace the victim",
    "take what the victim has open",
    "add a key to the keyring",  # containers have no keyrings
    "find a key in the keyring",
    "ask for a key",
    "make a POSIX message queue",  # a kernel may lack it
    "open an io_uring",
    "count the victim's performance",  # needs an administrator on most systems
    "handle its own page faults",
    "load a BPF map",
    "enter a namespace of its own",
}
"""Attempts that may fail even in an unconfined process, on a hardened system."""

ROOT_AGAIN = """
import resource, sys

sys.path.insert(0, sys.argv[1])
import decoder


def raise_limits(*_):
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print("raised", limit)
        except ValueError:
            pass
    print("tried")


decoder.serve = raise_limits
decoder.main()
"""


@pytest.fixture
def victim():
    """Start a process of the same user."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.poll() is None  # survived every attempt
        process.communicate(b"\n")


@pytest.fixture
def shared_memory():
    """Return the id of memory that processes of the same user can attach."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    made = libc.shmget(0, 64, 0o600)
    address = libc.shmat(made, None, 0)
    ctypes.memmove(address, SECRET, len(SECRET))
    yield made
    libc.shmdt(ctypes.c_void_p(address))
    libc.shmctl(made, 0, None)


@pytest.fixture
def taken_over(tmp_path, victim, shared_memory):
    """Return a function that runs an attacker's decoder: ``taken_over(confined=True)``."""
    secret = ctypes.create_string_buffer(SECRET, len(SECRET))
    for name in ("victim", "second victim"):
        (tmp_path / name).write_text("precious")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        os.fdopen(os.pidfd_open(victim)) as pidfd,
    ):
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        known = {
            "runway": str(Path(confinement.__file__).parent),
            "here": str(tmp_path),
            "secret": ctypes.addressof(secret),
            "port": tcp.getsockname()[1],
            "victim": victim,
            "pidfd": pidfd.fileno(),
            "shared": shared_memory,
        }

        def attempted(*, confined: bool) -> dict[str, str]:
            done = subprocess.run(
                [sys.executable, "-P", str(PROGRAM), json.dumps(known | {"confined": confined})],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=[pidfd.fileno()],
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield attempted


def in_a_confined_thread(attempt: Callable[[], T]) -> T | OSError:
    """Run an attempt in a confined thread and return its result or error."""
    results: list[T | OSError] = []

    def confined() -> None:
        confinement.drop_privileges()
        try:
            results.append(attempt())
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=confined)
    thread.start()
    thread.join()
    return results[0]


def read_a_file() -> str:
    return Path("/etc/passwd").read_text()


def open_a_socket() -> str:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()
    return "opened"


@knows_machine
def test_a_file_that_takes_the_decoder_over_reaches_nothing(taken_over, tmp_path):
    """A taken-over decoder reaches no file, network, process, shared object or key in memory."""
    results = taken_over(confined=True)
    assert {name: result for name, result in results.items() if result == "done"} == {}
    left = {path.name: path.read_text() for path in tmp_path.glob("*victim")}
    assert left == {"victim": "precious", "second victim": "precious"}
    assert len(list(tmp_path.iterdir())) == 3  # two victims and the socket


@knows_machine
def test_a_denied_call_fails_as_if_it_were_missing_or_forbidden(taken_over):
    """The filter itself denies the call, so no other attempt of an attacker succeeds."""
    assert set(taken_over(confined=True).values()) <= {"EACCES", "ENOSYS"}


@knows_machine
def test_what_is_given_up_can_be_told(monkeypatch):
    """The remaining access is found by trying, and is reported on systems without confinement."""
    assert in_a_confined_thread(confinement.reached) == []
    assert confinement.reached() == ["files", "network", "processes"]
    monkeypatch.setattr(confinement, "MACHINES", {})
    assert in_a_confined_thread(confinement.reached) == ["network", "processes"]
    monkeypatch.setattr(confinement, "_apply_landlock", lambda _libc: None)
    assert in_a_confined_thread(confinement.reached) == ["files", "network", "processes"]


def test_what_is_tried_would_be_done_by_a_process_that_is_not_confined(taken_over):
    """The attempts succeed without confinement, so the test above cannot pass vacuously."""
    results = taken_over(confined=False)
    failed = {name: result for name, result in results.items() if result != "done"}
    assert failed.keys() <= REFUSED_BY_SOME_SYSTEMS, failed


def test_what_was_given_up_cannot_be_taken_back():
    """A lowered limit cannot be raised."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ROOT_AGAIN, str(Path(confinement.__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "tried\n"


def test_only_who_asks_for_it_is_confined():
    """The process that uses the decoder is not confined."""
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)
    assert read_a_file()
    assert open_a_socket()


@pytest.mark.parametrize("version", [one for one in confinement.LANDLOCK_RIGHTS if one <= LANDLOCK])
def test_an_older_kernel_denies_what_it_knows(version, monkeypatch):
    """Features that an older kernel does not know are not requested, as it would refuse all."""
    known = {one: denies for one, denies in confinement.LANDLOCK_RIGHTS.items() if one <= version}
    monkeypatch.setattr(confinement, "LANDLOCK_RIGHTS", known)
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)


@knows_machine
def test_a_kernel_without_landlock_still_opens_no_socket(monkeypatch):
    """No file can be opened either, but an open file can still be read."""
    monkeypatch.setattr(confinement, "SYS_LANDLOCK_CREATE_RULESET", 999_999)  # exists in no kernel
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)
    assert isinstance(in_a_confined_thread(open_a_socket), PermissionError)


def test_a_ruleset_that_the_kernel_rejects_is_reported_and_does_not_end_the_decoder(monkeypatch):
    """A decoder without Landlock continues, and reports the access that it still has."""
    monkeypatch.setattr(confinement, "LANDLOCK_RIGHTS", {1: (1 << 63, 0, 0)})  # known to no kernel
    monkeypatch.setattr(confinement, "MACHINES", {})
    assert in_a_confined_thread(confinement.reached) == ["files", "network", "processes"]


@pytest.mark.parametrize("unknown", ["machine", "small", "emulated"])
def test_on_an_unknown_machine_files_are_denied_all_the_same(unknown, monkeypatch):
    """No call is denied by its number, which may mean another call on that machine."""
    if unknown == "machine":
        monkeypatch.setattr(confinement, "MACHINES", {})
    elif unknown == "small":
        monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    else:
        strange = {os.uname().machine: confinement.Machine(1, 2)}
        monkeypatch.setattr(confinement, "MACHINES", strange)
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)
    assert in_a_confined_thread(open_a_socket) == "opened"


def test_elsewhere_nothing_is_renounced(monkeypatch):
    """The numbers of the calls are those of Linux and mean other calls on other systems."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert in_a_confined_thread(read_a_file) == read_a_file()


def test_limits_never_rise_above_those_of_the_machine(monkeypatch):
    """A lower limit set by an administrator stays."""
    set_to: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1000, 1000))
    monkeypatch.setattr(resource, "setrlimit", set_to.__setitem__)
    confinement.limit(memory=2000)
    assert set_to[resource.RLIMIT_AS] == (1000, 1000)
    assert set_to[resource.RLIMIT_FSIZE] == (0, 0)
