# SPDX-License-Identifier: Apache-2.0
"""A hole in the decoder leads nowhere: what could use it finds nothing, and nobody to tell.

Everything is tried for real. Where a whole process is not needed, a thread is confined: what Linux
denies, it denies to the thread that asked for it.
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

from prefect_cometapi.runway import confinement

LANDLOCK = (
    ctypes.CDLL(None).syscall(confinement._CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if sys.platform == "linux"
    else 0
)
pytestmark = pytest.mark.skipif(
    LANDLOCK < 1, reason="this kernel has no Landlock (Linux 5.13, booted with lsm=…,landlock)"
)
knows_machine = pytest.mark.skipif(
    os.uname().machine not in confinement._MACHINES or sys.maxsize < 1 << 32,
    reason="no call of this machine is denied",
)

T = TypeVar("T")
SECRET = b"sk-canary-in-memory"

TAKEN_OVER = """
import ctypes, errno, json, os, resource, socket, sys, threading

folder, address, port, confined = sys.argv[1:]
sys.path.insert(0, folder)
import decoder

libc = ctypes.CDLL(None, use_errno=True)
parent, here = os.getppid(), os.path.dirname(sys.argv[0])
victim = os.path.join(here, "victim")


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def write(path):
    with open(path, "w") as file:
        file.write("")


def connect(family, kind, to):
    with socket.socket(family, kind) as one:
        one.connect(to)


def look_into_the_parent():
    class Part(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    found = ctypes.create_string_buffer(19)
    mine, its = Part(ctypes.addressof(found), 19), Part(int(address), 19)
    if libc.process_vm_readv(parent, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "not read")
    if found.raw != b"sk-canary-in-memory":
        raise SystemExit(f"read {found.raw} instead")


def in_a_thread():
    failed = []

    def attempt():
        try:
            read("/etc/passwd")
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


attempts = {
    "read a file": lambda: read("/etc/passwd"),
    "read a file in a thread": in_a_thread,
    "read the parent's environment": lambda: read(f"/proc/{parent}/environ"),
    "read its own": lambda: read("/proc/self/environ"),
    "look into the parent's memory": look_into_the_parent,
    "list a folder": lambda: os.listdir("/"),
    "write a new file": lambda: write(os.path.join(here, "new")),
    "write over a file": lambda: write(victim),
    "cut a file": lambda: os.truncate(victim, 0),
    "make a folder": lambda: os.mkdir(os.path.join(here, "folder")),
    "make a link": lambda: os.symlink("/", os.path.join(here, "link")),
    "rename a file": lambda: os.rename(victim, victim + "2"),
    "remove a file": lambda: os.unlink(os.path.join(here, "second victim")),
    "start a program": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "start a process": lambda: os.waitpid(os.fork() or os._exit(0), 0),
    "connect by TCP": lambda: connect(
        socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(port))
    ),
    "send by UDP": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", int(port))),
    "connect to a Unix socket": lambda: connect(
        socket.AF_UNIX, socket.SOCK_STREAM, os.path.join(here, "socket")
    ),
    "signal the parent": lambda: os.kill(parent, 0),
}


def attempt_all(*_):
    results = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            results[name] = "done"
        except OSError as error:
            results[name] = errno.errorcode[error.errno]
    print(json.dumps(results))


if confined == "confined":
    decoder.serve = attempt_all
    decoder.main()
else:
    decoder.load()
    attempt_all()
"""

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
def taken_over(tmp_path):
    """What a decoder can do whose program is somebody else's: ``taken_over("confined")``."""
    secret = ctypes.create_string_buffer(SECRET, len(SECRET))
    program = tmp_path / "taken_over.py"
    program.write_text(TAKEN_OVER)
    for name in ("victim", "second victim"):
        (tmp_path / name).write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()

        def attempted(how: str) -> dict[str, str]:
            known = [str(ctypes.addressof(secret)), str(tcp.getsockname()[1]), how]
            folder = str(Path(confinement.__file__).parent)
            done = subprocess.run(
                [sys.executable, "-P", str(program), folder, *known],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield attempted


def in_a_confined_thread(attempt: Callable[[], T]) -> T | OSError:
    """What comes of it there."""
    results: list[T | OSError] = []

    def confined() -> None:
        confinement.renounce()
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
    """No file, no network, no other process, nor the key in its environment or its memory."""
    results = taken_over("confined")
    if LANDLOCK < 6:
        del results["signal the parent"]
    assert {name: result for name, result in results.items() if result == "done"} == {}
    left = {path.name: path.read_text() for path in tmp_path.glob("*victim")}
    assert left == {"victim": "precious", "second victim": "precious"}
    assert len(list(tmp_path.iterdir())) == 4  # with the program and the socket


@knows_machine
def test_what_is_given_up_can_be_told(monkeypatch):
    """It is tried; what a system does not know stays, and stays no secret."""
    assert in_a_confined_thread(confinement.reached) == []
    assert confinement.reached() == ["files", "network"]
    monkeypatch.setattr(confinement, "_allow_nothing", lambda _libc: None)
    assert in_a_confined_thread(confinement.reached) == ["files"]
    monkeypatch.undo()
    monkeypatch.setattr(confinement, "_MACHINES", {})
    assert in_a_confined_thread(confinement.reached) == ["network"]


def test_what_is_tried_would_be_done_by_a_process_that_is_not_confined(taken_over):
    """So that the test above cannot pass because an attempt is none."""
    results = taken_over("free")
    del results["look into the parent's memory"]  # some systems allow it to nobody
    assert {name: result for name, result in results.items() if result != "done"} == {}


def test_what_was_given_up_cannot_be_taken_back():
    """A limit that was lowered cannot be raised."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ROOT_AGAIN, str(Path(confinement.__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "tried\n"


def test_only_who_asks_for_it_is_confined():
    """The process that asks the decoder goes on as before."""
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)
    assert read_a_file()
    assert open_a_socket()


@pytest.mark.parametrize("version", [one for one in confinement._LANDLOCK if one <= LANDLOCK])
def test_an_older_kernel_denies_what_it_knows(version, monkeypatch):
    """It is not asked for what it does not know, which it would refuse altogether."""
    known = {one: denies for one, denies in confinement._LANDLOCK.items() if one <= version}
    monkeypatch.setattr(confinement, "_LANDLOCK", known)
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)


@knows_machine
def test_a_kernel_without_landlock_still_opens_no_socket(monkeypatch):
    """And the video is read all the same."""
    monkeypatch.setattr(confinement, "_CREATE_RULESET", 999_999)  # a call that no kernel has
    assert in_a_confined_thread(read_a_file) == read_a_file()
    assert isinstance(in_a_confined_thread(open_a_socket), PermissionError)


@pytest.mark.parametrize("unknown", ["machine", "small", "emulated"])
def test_on_an_unknown_machine_files_are_denied_all_the_same(unknown, monkeypatch):
    """No call is denied by a number that may mean another one there."""
    if unknown == "machine":
        monkeypatch.setattr(confinement, "_MACHINES", {})
    elif unknown == "small":
        monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    else:
        strange = dict.fromkeys([os.uname().machine], (1, 2, (3,), 4))
        monkeypatch.setattr(confinement, "_MACHINES", strange)
    assert isinstance(in_a_confined_thread(read_a_file), PermissionError)
    assert in_a_confined_thread(open_a_socket) == "opened"


def test_elsewhere_nothing_is_renounced(monkeypatch):
    """The numbers are those of Linux, and mean other things to other systems."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert in_a_confined_thread(read_a_file) == read_a_file()


def test_limits_never_rise_above_those_of_the_machine(monkeypatch):
    """Where an administrator allows less, less it stays."""
    set_to: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1000, 1000))
    monkeypatch.setattr(resource, "setrlimit", set_to.__setitem__)
    confinement.limit(memory=2000)
    assert set_to[resource.RLIMIT_AS] == (1000, 1000)
    assert set_to[resource.RLIMIT_FSIZE] == (0, 0)
