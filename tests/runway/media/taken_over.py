# SPDX-License-Identifier: Apache-2.0
"""An attacker's program in place of the decoder: it tries everything and prints the results.

test_confinement.py runs it by its path, with one argument, a JSON object: ``runway`` (folder of the
decoder), ``here`` (folder with victims), ``secret`` (address of a secret in the parent), ``port``,
``victim`` (process of the same user), ``shared`` (id of its shared memory), ``confined``.
"""

import ctypes
import errno
import json
import os
import resource
import socket
import sys
import threading
from pathlib import Path
from typing import Any

KNOWN: dict[str, Any] = json.loads(sys.argv[1])
sys.path[:0] = [KNOWN["runway"], str(Path(__file__).parent)]

import calls  # noqa: E402
import decoder  # pyright: ignore[reportMissingImports]  # noqa: E402

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = LIBC.shmat.restype = ctypes.c_long
COLUMN = calls.COLUMNS.get(os.uname().machine, 0)
SECRET = b"sk-canary-in-memory"
PARENT, VICTIM, HERE = os.getppid(), KNOWN["victim"], Path(KNOWN["here"])
TO_VICTIM = HERE / "victim"
SHARED, OF_THIS_USER, USER_KEYRING = KNOWN["shared"], 0o600, -4
CREATE_PRIVATE = (0, 64, OF_THIS_USER)  # of shared memory
MINE = ctypes.create_string_buffer(len(SECRET))


class Part(ctypes.Structure):
    """A piece of memory, as process_vm_readv expects it."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def call(name: str, *arguments: Any) -> int:
    """Make a system call that the C library may not know."""
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = LIBC.syscall(ctypes.c_long(calls.CALLS[name][COLUMN]), *wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def opened(name: str, *arguments: Any) -> None:
    """Make a call that returns a descriptor, and close that."""
    os.close(call(name, *arguments))


def read(path: str) -> None:
    with Path(path).open("rb") as file:
        file.read(1)


def connect(family: int, kind: int, to: Any) -> None:
    with socket.socket(family, kind) as one:
        one.connect(to)


def copied(name: str) -> None:
    """Read from or write to the parent's memory."""
    mine = Part(ctypes.addressof(MINE), len(SECRET))
    its = Part(KNOWN["secret"], len(SECRET))
    call(name, PARENT, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0)
    if MINE.raw != SECRET:
        raise SystemExit(f"read {MINE.raw!r} instead")


def in_a_thread() -> None:
    failed: list[OSError] = []

    def attempt() -> None:
        try:
            read("/etc/passwd")
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def limit_the_victim() -> None:
    """Set the victim's limit of processor time, which kills a victim that has used more already."""
    resource.prlimit(VICTIM, resource.RLIMIT_CPU, resource.prlimit(VICTIM, resource.RLIMIT_CPU))


def schedule_the_victim() -> None:
    os.sched_setscheduler(VICTIM, os.SCHED_BATCH, os.sched_param(0))


def set_attributes_of_the_victim() -> None:
    attributes = ctypes.create_string_buffer(48)
    attributes[0:4] = (48).to_bytes(4, sys.byteorder)  # size; the default policy follows
    attributes[16:20] = (19).to_bytes(4, sys.byteorder)  # nice value, which may only be raised
    call("sched_setattr", VICTIM, attributes, 0)


def attach_shared_memory() -> None:
    address = call("shmat", SHARED, None, 0)
    found = ctypes.string_at(address, len(SECRET))
    LIBC.shmdt(ctypes.c_void_p(address))
    if found != SECRET:
        raise SystemExit(f"read {found!r} instead")


def make_and_remove(name: str, control: str, *arguments: Any) -> None:
    """Make a System V object and remove it."""
    made = call(name, *arguments)
    removing = (made, 0, 0) if control == "semctl" else (made, 0)
    call(control, *removing, None)


def add_a_key() -> None:
    call("add_key", b"user", b"prefect-cometapi-test", SECRET, len(SECRET), USER_KEYRING)


def find_the_key() -> None:
    ring = call("keyctl", 0, USER_KEYRING, 1)
    call("keyctl", 10, ring, b"user", b"prefect-cometapi-test", 0)


def ask_for_the_key_and_remove_it() -> None:
    key = call("request_key", b"user", b"prefect-cometapi-test", None, 0)
    call("keyctl", 9, key, USER_KEYRING)


def trace_the_victim() -> None:
    call("ptrace", 0x4206, VICTIM, None, None)  # PTRACE_SEIZE, which does not stop the victim


def open_a_ring() -> None:
    opened("io_uring_setup", 1, ctypes.create_string_buffer(120))


def watch_performance_of_the_victim() -> None:
    attributes = ctypes.create_string_buffer(112)
    attributes[0:8] = (1).to_bytes(4, sys.byteorder) + (112).to_bytes(4, sys.byteorder)
    opened("perf_event_open", attributes, VICTIM, -1, -1, 0)


def open_a_queue() -> None:
    opened("mq_open", b"prefect-cometapi-test", os.O_CREAT | os.O_RDWR, OF_THIS_USER, None)
    call("mq_unlink", b"prefect-cometapi-test")


def have_it_signalled() -> None:
    """Register the victim for signals about input, which needs no call of kill."""
    with open(0, "rb", closefd=False) as standard_input:
        call("fcntl", standard_input.fileno(), 8, VICTIM)  # F_SETOWN


def run_a_program() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


ATTEMPTS = {
    "read a file": lambda: read("/etc/passwd"),
    "read a file in a thread": in_a_thread,
    "read the parent's environment": lambda: read(f"/proc/{PARENT}/environ"),
    "read its own": lambda: read("/proc/self/environ"),
    "see that a file exists": TO_VICTIM.stat,
    "list a folder": lambda: list(Path("/").iterdir()),
    "write a new file": lambda: (HERE / "new").write_text(""),
    "write over a file": lambda: TO_VICTIM.write_text(""),
    "cut a file": lambda: os.truncate(TO_VICTIM, 0),
    "change a file's mode": lambda: TO_VICTIM.chmod(0o666),
    "change a file's times": lambda: os.utime(TO_VICTIM, (0, 0)),
    "watch a folder": lambda: opened("inotify_init1", 0),
    "make a folder": (HERE / "folder").mkdir,
    "make a link": lambda: (HERE / "link").symlink_to("/"),
    "rename a file": lambda: TO_VICTIM.rename(HERE / "victim2"),
    "remove a file": (HERE / "second victim").unlink,
    "make a file in memory": lambda: opened("memfd_create", b"new", 0),
    "start a program": run_a_program,
    "start a process": lambda: os.waitpid(os.fork() or os._exit(0), 0),
    "connect by TCP": lambda: connect(
        socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", KNOWN["port"])
    ),
    "send by UDP": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", KNOWN["port"])),
    "connect to a Unix socket": lambda: connect(
        socket.AF_UNIX, socket.SOCK_STREAM, str(HERE / "socket")
    ),
    "signal the parent": lambda: os.kill(PARENT, 0),
    "signal the victim's thread": lambda: call("tgkill", VICTIM, VICTIM, 0),
    "have the victim signalled": have_it_signalled,
    "limit the victim": limit_the_victim,
    "renice the victim": lambda: os.setpriority(os.PRIO_PROCESS, VICTIM, 19),
    "renice its input and output": lambda: call("ioprio_set", 1, VICTIM, 2 << 13 | 7),
    "choose the victim's processors": lambda: os.sched_setaffinity(
        VICTIM, os.sched_getaffinity(VICTIM)
    ),
    "choose the victim's scheduler": schedule_the_victim,
    "set the victim's scheduling": lambda: os.sched_setparam(VICTIM, os.sched_param(0)),
    "set the victim's attributes": set_attributes_of_the_victim,
    "open the victim's process": lambda: opened("pidfd_open", VICTIM, 0),
    "signal an open process": lambda: call("pidfd_send_signal", KNOWN["pidfd"], 0, None, 0),
    "take what the victim has open": lambda: opened("pidfd_getfd", KNOWN["pidfd"], 0, 0),
    "look into the parent's memory": lambda: copied("process_vm_readv"),
    "write into the parent's memory": lambda: copied("process_vm_writev"),
    "compare itself with the victim": lambda: call("kcmp", os.getpid(), VICTIM, 0, 0, 0),
    "trace the victim": trace_the_victim,
    "read shared memory": attach_shared_memory,
    "make shared memory": lambda: make_and_remove("shmget", "shmctl", *CREATE_PRIVATE),
    "make a semaphore": lambda: make_and_remove("semget", "semctl", 0, 1, OF_THIS_USER),
    "make a message queue": lambda: make_and_remove("msgget", "msgctl", 0, OF_THIS_USER),
    "make a POSIX message queue": open_a_queue,
    "add a key to the keyring": add_a_key,
    "find a key in the keyring": find_the_key,
    "ask for a key": ask_for_the_key_and_remove_it,
    "open an io_uring": open_a_ring,
    "count the victim's performance": watch_performance_of_the_victim,
    "handle its own page faults": lambda: opened("userfaultfd", 1),
    "load a BPF map": lambda: opened("bpf", 0, _bpf_map(), 72),
    "enter a namespace of its own": lambda: call("unshare", 0x400),  # CLONE_FILES, for anybody
    "change its personality": lambda: call("personality", 0xFFFFFFFF),
}


def _bpf_map() -> Any:
    """Return the attributes of an array with one number."""
    numbers = [2, 4, 4, 1]
    return ctypes.create_string_buffer(b"".join(n.to_bytes(4, sys.byteorder) for n in numbers), 72)


def attempt_all(*_: Any) -> None:
    results = {}
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
            results[name] = "done"
        except OSError as error:
            results[name] = errno.errorcode[error.errno or 0]
    print(json.dumps(results))


if KNOWN["confined"]:
    decoder.serve = attempt_all
    decoder.main()
else:
    decoder.load()
    MINE.raw = SECRET
    attempt_all()
