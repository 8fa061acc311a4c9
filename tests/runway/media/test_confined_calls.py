# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter of a confined decoder, interpreted for every machine that it supports.

test_confinement.py tests it in the kernel of this machine.
"""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.media import confinement
from prefect_cometapi.runway.media.confinement import MACHINES, allowed_calls, seccomp_filter

from .calls import CALLS, COLUMNS, NONE

ALLOW, FAIL = 0x7FFF0000, 0x00050000
PID = 4711
X32 = 0x40000000
"""Bit in the number of each system call of an x86-64 program with 32-bit addresses."""
CLONE_THREAD = 0x10000

machines = pytest.mark.parametrize("machine", sorted(MACHINES))
words = st.integers(0, 2**32 - 1)


def verdict(machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """Run the filter on a call as the kernel would, and return the result."""
    architecture = architecture or MACHINES[machine].audit_arch
    program = list(struct.iter_unpack("=HBBI", seccomp_filter(machine, PID)))
    asked = struct.pack("=IIQ6Q", number, architecture, 0, argument, *[0] * 5)
    at = loaded = 0
    while True:
        what, if_so, if_not, value = program[at]
        at += 1
        if what == confinement.BPF_RETURN:
            return value
        if what == confinement.BPF_LOAD_WORD:
            (loaded,) = struct.unpack_from("=I", asked, value)
            continue
        holds = {
            confinement.BPF_JUMP_IF_EQUAL: loaded == value,
            confinement.BPF_JUMP_IF_AT_LEAST: loaded >= value,
            confinement.BPF_JUMP_IF_ANY_BIT: bool(loaded & value),
        }
        at += if_so if holds[what] else if_not


def is_denied(outcome: int) -> bool:
    """Return whether the call fails with an error that a C library or Python can handle."""
    return outcome in {FAIL | errno.EACCES, FAIL | errno.ENOSYS}


@machines
@pytest.mark.parametrize("name", sorted(CALLS))
@pytest.mark.heavy
def test_no_call_reaches_another_process_a_file_or_what_is_shared(machine, name):
    """Each call is denied by its number on every machine, with arguments for another process."""
    number = CALLS[name][COLUMNS[machine]]
    if number == NONE:
        pytest.skip("this machine lacks the call")
    assert is_denied(verdict(machine, number, PID + 1 & ~CLONE_THREAD))


@machines
@given(number=words, argument=words)
def test_a_call_that_nobody_thought_of_is_denied(machine, number, argument):
    """Unknown calls are denied, including those of later kernels."""
    allowed = {call.number(machine) for _why, calls in allowed_calls(PID) for call in calls}
    assert number in allowed or is_denied(verdict(machine, number, argument))


@machines
@given(number=st.integers(0, 600), argument=words)
def test_a_32_bit_program_may_make_no_call(machine, number, argument):
    """The same number means another call there, so allowing it would allow any call."""
    small = MACHINES[machine].audit_arch_32_bit
    assert is_denied(verdict(machine, number, argument, small))


@given(number=st.integers(0, 600), argument=words)
def test_the_calls_of_x32_are_denied(number, argument):
    """The calls of x32 have the same effects as those of x86-64, under other numbers."""
    assert is_denied(verdict("x86_64", number | X32, argument))


@machines
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("prlimit64", 0),
        ("sched_getaffinity", 0),
        ("prctl", 15),
        ("tgkill", PID),
        ("clone", 0x3D0F00),
    ],
)
def test_what_a_process_needs_of_itself_is_allowed(machine, name, argument):
    """A process may use its own limits, processors and threads, name its threads and abort."""
    number = CALLS[name][COLUMNS[machine]]
    assert verdict(machine, number, argument) == ALLOW
    # The kernel and the filter read only the lower half of a process id.
    assert verdict(machine, number, argument | 1 << 40) == ALLOW


@machines
@given(flags=words)
def test_no_process_is_started(machine, flags):
    """A child process could outlive the decoder and keep its files."""
    outcome = verdict(machine, CALLS["clone"][COLUMNS[machine]], flags)
    assert (outcome == ALLOW) == bool(flags & CLONE_THREAD)
