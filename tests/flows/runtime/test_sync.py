# SPDX-License-Identifier: Apache-2.0
"""Async code run for sync callers."""

import asyncio
import ctypes
import gc
import os
import signal
import threading
import time

import pytest

from prefect_cometapi.flows.runtime.sync import run_sync

from ...waiting import until


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


def test_an_interruption_at_any_moment_ends_the_call():
    """A signal during the start, the wait or the end of the coroutine leaves nothing running."""
    begun = ended = 0
    is_armed = False

    def handle(*_):
        if is_armed:
            raise Interruption

    def interrupt_after(seconds):
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGUSR1)

    async def core():
        nonlocal begun, ended
        begun += 1
        try:
            await asyncio.sleep(0.002)
        finally:
            ended += 1

    before = signal.signal(signal.SIGUSR1, handle)
    threads = threading.active_count()
    gc.disable()  # callbacks of the collector would swallow an interruption
    try:
        for number in range(200):
            other = threading.Thread(target=interrupt_after, args=(number * 2e-5,))
            other.start()
            try:
                is_armed = True
                run_sync(core())
                is_armed = False
            except Interruption:
                is_armed = False
            other.join()
    finally:
        gc.enable()
        signal.signal(signal.SIGUSR1, before)
    assert 0 < begun == ended
    until(lambda: threading.active_count() == threads, "the end of all threads", 10)
