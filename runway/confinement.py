# SPDX-License-Identifier: Apache-2.0
"""What a process gives up for good before it reads what a stranger wrote.

Whoever takes it over by a hole in a decoder has what the process still may, so it may nothing that
it does not need: only go on computing, and reading and writing what is open already. Everything is
done by the process itself and needs no right of its own. What a system does not know is passed
over, as a video is better read with less confinement than not at all.

It imports nothing of the package: decoder.py runs it by its path.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from typing import Any

# From the kernel's headers linux/landlock.h, prctl.h, seccomp.h, filter.h, audit.h, capability.h.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # calls with the same numbers on every machine
_ASK_VERSION = 1
_LANDLOCK = {  # version: what it can deny of files, of networks, and of other processes
    1: (0x1FFF, 0, 0),  # Linux 5.13: execute, write, read, list, remove, make
    2: (0x3FFF, 0, 0),  # 5.19: and link or move elsewhere
    3: (0x7FFF, 0, 0),  # 6.2: and truncate
    4: (0x7FFF, 3, 0),  # 6.7: and bind and connect TCP
    5: (0xFFFF, 3, 0),  # 6.10: and command devices
    6: (0xFFFF, 3, 3),  # 6.12: and connect abstract Unix sockets, and signal
}
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000
_MACHINES = {  # its calls, those of its 32-bit programs, socket and forks, and clone
    "x86_64": (0xC000003E, 0x40000003, (41, 57, 58), 56),
    "aarch64": (0xC00000B7, 0x40000028, (198,), 220),
}
_IO_URING_SETUP, _CLONE3, _X32, _CLONE_THREAD = 425, 435, 0x40000000, 0x10000
_MANNER, _NUMBER, _FIRST_ARGUMENT = 4, 0, 16  # where they stand in what a filter is given
_CAPABILITIES_OF_64_BITS = 0x20080522


def confine(memory: int) -> None:
    """Give up everything below.

    Args:
        memory: Bytes of address space that are kept.
    """
    limit(memory)
    renounce()


def limit(memory: int) -> None:
    """Give up most memory, and writing to files; not on Windows.

    Args:
        memory: Bytes of address space that are kept.
    """
    try:
        import resource
    except ImportError:
        return

    def at_most(what: int, limit: int) -> None:
        _, hard = resource.getrlimit(what)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(OSError, ValueError):  # a system that does not know this limit
            resource.setrlimit(what, (lower, lower))

    at_most(resource.RLIMIT_AS, memory)
    at_most(resource.RLIMIT_FSIZE, 0)
    at_most(resource.RLIMIT_CORE, 0)


def renounce() -> None:
    """Give up files, networks, other processes, and what root may; on Linux only.

    It binds the thread that calls it, and those that this one starts.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _allow_nothing(libc)
    _call_for_nobody(libc)
    libc.capset(struct.pack("=Ii", _CAPABILITIES_OF_64_BITS, 0), bytes(24))


def reached() -> list[str]:
    """What this thread can reach, tried: files, the network."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        os.close(os.open(sys.executable, os.O_RDONLY))
        found.append("files")
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        found.append("network")
    return found


def _allow_nothing(libc: ctypes.CDLL) -> None:
    """Landlock denies what no rule allows, and here is no rule."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return
    denied = struct.pack("=QQQ", *_LANDLOCK[min(version, max(_LANDLOCK))])
    rules = libc.syscall(_CREATE_RULESET, denied, ctypes.c_size_t(len(denied)), 0)
    libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _call_for_nobody(libc: ctypes.CDLL) -> None:
    """Open no socket and start no process; Landlock leaves UDP, Unix sockets and forks.

    Behind a socket are others who may do more, and no limit of descriptors stands in for this: who
    closes one may open another. A child could outlive the process and keep what it was handed.
    """
    calls, small_calls, denied, clone = _MACHINES.get(os.uname().machine, (0, 0, (), 0))
    if not calls or sys.maxsize < 1 << 32:  # a 32-bit Python makes other calls
        return
    program = _assembled(
        (_LOAD, _MANNER),
        (_EQUAL, small_calls, "deny"),
        (_EQUAL, calls, "", "allow"),  # an emulator makes others
        (_LOAD, _NUMBER),
        (_AT_LEAST, _X32, "deny"),
        *((_EQUAL, number, "deny") for number in (*denied, _IO_URING_SETUP)),
        (_EQUAL, _CLONE3, "unknown"),  # what it asks cannot be seen; the C library takes clone then
        (_EQUAL, clone, "", "allow"),
        (_LOAD, _FIRST_ARGUMENT),
        (_HAS, _CLONE_THREAD, "", "deny"),
    )
    steps = ctypes.create_string_buffer(program)
    libc.prctl(_SET_SECCOMP, _FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(steps)))


def _assembled(*steps: tuple[Any, ...]) -> bytes:
    """A filter: what to do, with what, and where to go on if so and if not; else with the next."""
    deny, unknown = _FAIL_WITH | errno.EACCES, _FAIL_WITH | errno.ENOSYS
    ends = {"allow": _ALLOW, "deny": deny, "unknown": unknown}
    places = {name: len(steps) + number for number, name in enumerate(ends)}
    program = b""
    for here, (what, value, *ways) in enumerate(steps):
        jumps = [places[way] - here - 1 if way else 0 for way in (*ways, "", "")[:2]]
        program += struct.pack("=HBBI", what, *jumps, value)
    return program + b"".join(struct.pack("=HBBI", _RETURN, 0, 0, end) for end in ends.values())
