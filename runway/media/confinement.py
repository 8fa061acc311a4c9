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

# Numbers from the kernel's headers: linux/landlock.h, prctl.h, seccomp.h, bpf_common.h, audit.h and
# capability.h. The two numbers of Landlock's system calls are the same on every machine.
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_CREATE_RULESET_VERSION = 1
PR_SET_NAME, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 15, 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
CAPABILITY_VERSION_3 = 0x20080522
CLONE_THREAD = 0x10000

LANDLOCK_RIGHTS = {
    1: (0x1FFF, 0, 0),  # Linux 5.13: execute, write, read, list, remove, make
    2: (0x3FFF, 0, 0),  # 5.19: and link or move elsewhere
    3: (0x7FFF, 0, 0),  # 6.2: and truncate
    4: (0x7FFF, 3, 0),  # 6.7: and bind and connect TCP
    5: (0xFFFF, 3, 0),  # 6.10: and command devices
    6: (0xFFFF, 3, 3),  # 6.12: and connect abstract Unix sockets, and signal
}
"""Rights that Landlock can deny, by its version: on files, on networks, and on other processes."""

# A seccomp filter is a program for the kernel's BPF machine. The machine has one register, and its
# input is the system call that is about to run. These are the opcodes that the filter uses.
BPF_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS: load the word at an offset of the input
BPF_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_JUMP_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
BPF_JUMP_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
BPF_RETURN = 0x06  # BPF_RET | BPF_K
NUMBER_OFFSET, ARCHITECTURE_OFFSET, FIRST_ARGUMENT_OFFSET = 0, 4, 16  # in struct seccomp_data


class Machine(NamedTuple):
    """Processor architecture: its AUDIT_ARCH value, and that of its 32-bit programs."""

    audit_arch: int
    audit_arch_32_bit: int


MACHINES = {
    "x86_64": Machine(0xC000003E, 0x40000003),
    "aarch64": Machine(0xC00000B7, 0x40000028),
}


class Condition(NamedTuple):
    """Condition on the first argument of a system call: a BPF jump and its operand."""

    opcode: int
    operand: int


class SystemCall(NamedTuple):
    """System call that the filter allows: its name, and its number on each machine."""

    name: str
    x86_64: int
    aarch64: int
    only_if: Condition | None = None

    def number(self, machine: str) -> int:
        """Return the number of the call on a machine."""
        return self.x86_64 if machine == "x86_64" else self.aarch64


def allowed_calls(pid: int) -> list[tuple[str, list[SystemCall]]]:
    """Return the system calls that a process may make, each group with its reason.

    They concern only the process itself. Every other one fails. A list of denied calls would miss
    the ones that its author did not think of, and those of later kernels.

    Args:
        pid: Id of the process.
    """
    is_zero = Condition(BPF_JUMP_IF_EQUAL, 0)
    return [
        (
            "read from and write to files that are already open",
            [
                SystemCall("read", 0, 63),
                SystemCall("write", 1, 64),
                SystemCall("readv", 19, 65),
                SystemCall("writev", 20, 66),
                SystemCall("pread64", 17, 67),
                SystemCall("lseek", 8, 62),
                SystemCall("fstat", 5, 80),
                SystemCall("close", 3, 57),
                SystemCall("recvfrom", 45, 207),
                SystemCall("recvmsg", 47, 212),
                SystemCall("getsockname", 51, 204),
                SystemCall("getsockopt", 55, 209),
            ],
        ),
        (
            "use memory",
            [
                SystemCall("brk", 12, 214),
                SystemCall("mmap", 9, 222),
                SystemCall("mremap", 25, 216),
                SystemCall("mprotect", 10, 226),
                SystemCall("munmap", 11, 215),
                SystemCall("madvise", 28, 233),
            ],
        ),
        (
            "run threads, but no child process, which could outlive this one and keep its files",
            [
                SystemCall("clone", 56, 220, Condition(BPF_JUMP_IF_ANY_BIT, CLONE_THREAD)),
                SystemCall("futex", 202, 98),
                SystemCall("set_robust_list", 273, 99),
                SystemCall("rseq", 334, 293),
                SystemCall("sched_yield", 24, 124),
                SystemCall("prctl", 157, 167, Condition(BPF_JUMP_IF_EQUAL, PR_SET_NAME)),
                SystemCall("exit", 60, 93),
                SystemCall("exit_group", 231, 94),
            ],
        ),
        (
            "handle its own signals and timers, and abort itself",
            [
                SystemCall("rt_sigaction", 13, 134),
                SystemCall("rt_sigprocmask", 14, 135),
                SystemCall("rt_sigreturn", 15, 139),
                SystemCall("sigaltstack", 131, 132),
                SystemCall("restart_syscall", 219, 128),
                SystemCall("setitimer", 38, 103),
                SystemCall("tgkill", 234, 131, Condition(BPF_JUMP_IF_EQUAL, pid)),
            ],
        ),
        (
            "read the clock and wait",
            [
                SystemCall("clock_gettime", 228, 113),
                SystemCall("clock_getres", 229, 114),
                SystemCall("clock_nanosleep", 230, 115),
                SystemCall("gettimeofday", 96, 169),
                SystemCall("nanosleep", 35, 101),
                SystemCall("ppoll", 271, 73),
            ],
        ),
        (
            "query itself (process 0 stands for the caller) and the machine",
            [
                SystemCall("getpid", 39, 172),
                SystemCall("gettid", 186, 178),
                SystemCall("getuid", 102, 174),
                SystemCall("geteuid", 107, 175),
                SystemCall("getgid", 104, 176),
                SystemCall("getegid", 108, 177),
                SystemCall("getrusage", 98, 165),
                SystemCall("prlimit64", 302, 261, is_zero),
                SystemCall("sched_getaffinity", 204, 123, is_zero),
                SystemCall("getrandom", 318, 278),
                SystemCall("sysinfo", 99, 179),
                SystemCall("uname", 63, 160),
            ],
        ),
    ]


FIRST_SHARED_NUMBER = 424
"""First number of the system calls that have the same number on all machines (Linux 5.1 and newer).
A C library works without them."""


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
    libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _apply_landlock(libc)
    libc.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24))
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


def _apply_landlock(libc: ctypes.CDLL) -> None:
    """Apply a Landlock ruleset without rules, which denies everything that it handles."""
    version = libc.syscall(
        SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return
    denied = struct.pack("=QQQ", *LANDLOCK_RIGHTS[min(version, max(LANDLOCK_RIGHTS))])
    ruleset = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, denied, ctypes.c_size_t(len(denied)), 0)
    if ruleset < 0:  # as on a kernel without Landlock; the remaining access is reported
        return
    libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _apply_seccomp(libc: ctypes.CDLL) -> None:
    """Deny every system call outside the table, on a machine whose call numbers are known.

    Landlock does not cover UDP, Unix sockets, forks, limits and priorities of other processes,
    shared memory, keyrings, and file attributes. A denied call fails with EACCES.
    """
    machine = os.uname().machine
    if machine not in MACHINES or sys.maxsize < 1 << 32:  # a 32-bit Python uses other numbers
        return
    program = seccomp_filter(machine, os.getpid())
    code = ctypes.create_string_buffer(program)
    length = len(program) // INSTRUCTION.size
    libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HP", length, ctypes.addressof(code))
    )


INSTRUCTION = struct.Struct("=HBBI")
"""Instruction: opcode, number of instructions to skip if true and if false, operand."""


def seccomp_filter(machine: str, pid: int) -> bytes:
    """Assemble the seccomp filter for a process on a machine.

    Args:
        machine: Name of the machine in ``MACHINES``.
        pid: Id of the process.
    """
    allow = _return(SECCOMP_RET_ALLOW)
    deny = _return(SECCOMP_RET_ERRNO | errno.EACCES)
    not_implemented = _return(SECCOMP_RET_ERRNO | errno.ENOSYS)
    known = MACHINES[machine]
    program = [
        _load(ARCHITECTURE_OFFSET),
        *_when(BPF_JUMP_IF_EQUAL, known.audit_arch_32_bit, deny),
        # This kernel runs no program of a third architecture, but an emulator's calls report one.
        *_unless_equal(known.audit_arch, allow),
        _load(NUMBER_OFFSET),
    ]
    for _reason, calls in allowed_calls(pid):
        for call in calls:
            body = [allow]
            if call.only_if:
                body = [_load(FIRST_ARGUMENT_OFFSET), *_when(*call.only_if, allow), deny]
            program += _when(BPF_JUMP_IF_EQUAL, call.number(machine), *body)
    # ENOSYS is the answer of a kernel without these calls. The C library then falls back, for
    # example from clone3 to clone. The numbers of x32 programs are also in this range.
    program += _when(BPF_JUMP_IF_AT_LEAST, FIRST_SHARED_NUMBER, not_implemented)
    program.append(deny)
    return b"".join(program)


def _load(offset: int) -> bytes:
    return INSTRUCTION.pack(BPF_LOAD_WORD, 0, 0, offset)


def _return(result: int) -> bytes:
    return INSTRUCTION.pack(BPF_RETURN, 0, 0, result)


def _when(jump: int, operand: int, *body: bytes) -> list[bytes]:
    """Return instructions that run the body only if the condition is true."""
    return [INSTRUCTION.pack(jump, 0, len(body), operand), *body]


def _unless_equal(operand: int, *body: bytes) -> list[bytes]:
    """Return instructions that run the body only if the loaded word is a different one."""
    return [INSTRUCTION.pack(BPF_JUMP_IF_EQUAL, len(body), 0, operand), *body]
