# SPDX-License-Identifier: Apache-2.0
"""Async code run for sync callers."""

import asyncio
import ctypes
import os
import signal
import threading

import pytest

from prefect_cometapi.flows.runtime.sync import run_sync


class Interruption(BaseException):
    """Raised in a thread from outside, as Prefect does for a timeout and for SIGTERM."""


def by_signal(_caller):
    """Let a signal's handler raise in the main thread, which is the caller."""
    os.kill(os.getpid(), signal.SIGUSR1)


def by_injection(caller):
    """Raise in the caller's thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(caller), ctypes.py_object(Interruption)
    )


@pytest.mark.parametrize("interrupt", [by_signal, by_injection])
def test_an_interruption_ends_the_call_whatever_runs_at_that_moment(interrupt):
    """An interruption while another task of the loop is busy is not lost, and cleans up."""
    ends = []
    caller = threading.get_ident()

    def handle(*_):
        raise Interruption

    async def busy():
        interrupt(caller)

    async def core():
        beside = asyncio.create_task(busy())
        try:
            await asyncio.wait([beside])
            await asyncio.sleep(5)
            ends.append("undisturbed")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(Interruption):
            run_sync(core())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ends == ["cancelled"]
