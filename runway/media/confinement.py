# SPDX-License-Identifier: Apache-2.0
"""Privileges that a process drops for good before it reads untrusted data.

An attacker who takes the process over through a bug in a decoder has the remaining privileges of
the process. So it keeps only the ones that it needs: to compute, and to read and write what is
already open. The process drops the others itself, which needs no special permission. A mechanism
that the system does not know is skipped: reading a video with less confinement is better than not
reading it at all.

This module imports nothing of the package, because decoder.py runs it by its path.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from typing import NamedTuple

# From the kernel's headers linux/landlock.h, prctl.h, seccomp.h, filter.h, audit.h, capability.h.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # these numbers are the same on every machine
_ASK_VERSION = 1
_LANDLOCK = {  # version: what it can deny for files, networks and other processes
    1: (0x1FFF, 0, 0),  # Linux 5.13: execute, write, read, list, remove, make
    2: (0x3FFF, 0, 0),  # 5.19: and link or move elsewhere
    3: (0x7FFF, 0, 0),  # 6.2: and truncate
    4: (0x7FFF, 3, 0),  # 6.7: and bind and connect TCP
    5: (0xFFFF, 3, 0),  # 6.10: and command devices
    6: (0xFFFF, 3, 3),  # 6.12: and connect abstract Unix sockets, and signal
}
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2

# Instructions of a seccomp filter, a program for the kernel's BPF virtual machine.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in the filter's input
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000


class _Machine(NamedTuple):
    architecture: int
    architecture_32_bit: int
    column: int
    """Column of the machine's numbers in the table of system calls."""


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0x40000003, 0),
    "aarch64": _Machine(0xC00000B7, 0x40000028, 1),
}
_ALLOWED = {  # numbers on x86-64 and on ARM64
    # Read from and write to files that are already open.
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "fstat": (5, 80),
    "close": (3, 57),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    # Use memory.
    "brk": (12, 214),
    "mmap": (9, 222),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "madvise": (28, 233),
    # Run threads.
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # Handle its own signals and timers.
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "setitimer": (38, 103),
    # Read the clock and wait.
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "ppoll": (271, 73),
    # Query the process itself and the machine.
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "sysinfo": (99, 179),
    "uname": (63, 160),
}
"""System calls that concern only the process itself. Every other one fails.

A list of denied calls would miss the ones that its author did not think of, and those of later
kernels.
"""

_CLONE, _CLONE_THREAD = (56, 220), 0x10000
_ALLOWED_WITH_FIRST_ARGUMENT = {
    "prlimit64": ((302, 261), 0),  # 0 is the process itself
    "sched_getaffinity": ((204, 123), 0),
    "prctl": ((157, 167), 15),  # PR_SET_NAME, which sets a thread's name
}
_TGKILL = (234, 131)
_SINCE_LINUX_5_1 = 424
"""First number of the system calls that have the same number on all machines. A C library works
without them."""

_CAPABILITIES_OF_64_BITS = 0x20080522


def confine(memory: int) -> None:
    """Limit memory and drop all privileges listed in this module.

    Args:
        memory: Bytes of address space that remain.
    """
    limit(memory)
    drop_privileges()


def limit(memory: int) -> None:
    """Limit memory, and forbid writing to files and core dumps; no effect on Windows.

    Args:
        memory: Bytes of address space that remain.
    """
    try:
        import resource
    except ImportError:
        return

    def at_most(what: int, limit: int) -> None:
        _, hard = resource.getrlimit(what)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        with contextlib.suppress(OSError, ValueError):  # the system may not support this limit
            resource.setrlimit(what, (lower, lower))

    at_most(resource.RLIMIT_AS, memory)
    at_most(resource.RLIMIT_FSIZE, 0)
    at_most(resource.RLIMIT_CORE, 0)


def drop_privileges() -> None:
    """Drop access to files, networks and other processes, and root's capabilities; Linux only.

    This applies to the calling thread and to the threads that it starts.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _allow_nothing(libc)
    libc.capset(struct.pack("=Ii", _CAPABILITIES_OF_64_BITS, 0), bytes(24))
    _apply_seccomp(libc)  # last, since it denies the system calls of the other steps


def reached() -> list[str]:
    """Return what this thread can still reach: files, the network, other processes."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        os.close(os.open(sys.executable, os.O_RDONLY))
        found.append("files")
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        found.append("network")
    with contextlib.suppress(OSError, AttributeError):  # not available on Windows
        os.getpriority(os.PRIO_PROCESS, os.getppid())
        found.append("processes")
    return found


def _allow_nothing(libc: ctypes.CDLL) -> None:
    """Apply a Landlock ruleset without rules, which denies everything that it handles."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return
    denied = struct.pack("=QQQ", *_LANDLOCK[min(version, max(_LANDLOCK))])
    rules = libc.syscall(_CREATE_RULESET, denied, ctypes.c_size_t(len(denied)), 0)
    libc.syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _apply_seccomp(libc: ctypes.CDLL) -> None:
    """Deny every system call outside the table, on a machine whose call numbers are known.

    Landlock does not cover UDP, Unix sockets, forks, limits and priorities of other processes,
    shared memory, keyrings, and file attributes. A denied call fails with EACCES.
    """
    machine = _MACHINES.get(os.uname().machine)
    if not machine or sys.maxsize < 1 << 32:  # a 32-bit Python uses other call numbers
        return
    program = _filter(machine, os.getpid())
    steps = ctypes.create_string_buffer(program)
    libc.prctl(_SET_SECCOMP, _FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(steps)))


_Step = tuple[int, int, int, int]
"""Instruction, its value, and the number of steps to skip if its condition is true and if it is
false."""


def _filter(machine: _Machine, pid: int) -> bytes:
    """Assemble the seccomp filter for a process on a machine."""
    allow: _Step = (_RETURN, _ALLOW, 0, 0)
    deny: _Step = (_RETURN, _FAIL_WITH | errno.EACCES, 0, 0)
    unknown: _Step = (_RETURN, _FAIL_WITH | errno.ENOSYS, 0, 0)

    def when(condition: int, value: int, *then: _Step) -> list[_Step]:
        return [(condition, value, 0, len(then)), *then]

    def with_argument(number: int, condition: int, value: int) -> list[_Step]:
        tested = when(condition, value, allow)
        return when(_IF_EQUAL, number, (_LOAD, _FIRST_ARGUMENT, 0, 0), *tested, deny)

    column = machine.column
    steps = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        *when(_IF_EQUAL, machine.architecture_32_bit, deny),
        # This kernel runs no program of a third architecture, but an emulator's calls report one.
        (_IF_EQUAL, machine.architecture, 1, 0),
        allow,
        (_LOAD, _NUMBER, 0, 0),
    ]
    for numbers in _ALLOWED.values():
        steps += when(_IF_EQUAL, numbers[column], allow)
    # Threads are allowed. A new process is not: it could outlive this one and keep its files.
    steps += with_argument(_CLONE[column], _IF_ANY_BIT, _CLONE_THREAD)
    steps += with_argument(_TGKILL[column], _IF_EQUAL, pid)  # abort() signals itself
    for numbers, value in _ALLOWED_WITH_FIRST_ARGUMENT.values():
        steps += with_argument(numbers[column], _IF_EQUAL, value)
    # ENOSYS is the answer of a kernel without these calls. The C library then falls back, for
    # example from clone3 to clone. The numbers of x32 programs are also in this range.
    steps += when(_IF_AT_LEAST, _SINCE_LINUX_5_1, unknown)
    steps.append(deny)
    return b"".join(struct.pack("=HBBI", what, *skips, value) for what, value, *skips in steps)
