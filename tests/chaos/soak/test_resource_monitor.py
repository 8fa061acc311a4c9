# SPDX-License-Identifier: Apache-2.0
"""Tests that growth is reported, and that fluctuation is not."""

import os
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .resource_monitor import ResourceMonitor, Scheduler, child_of, trend

HOLDING = """
import os, sys, threading
held = [open(os.devnull) for _ in range(50)] + [bytearray(30_000_000)]
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Start a process that holds fifty files, thirty megabytes and a second thread."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_the_resources_of_a_process_are_measured(holder):
    """The memory, descriptors and threads of a process are measured; a dead one is left out."""
    monitor = ResourceMonitor()
    monitor.measure({"it": psutil.Process(holder.pid)})
    (memory,), (files,), (threads,) = monitor.series.values()
    assert memory > 30
    assert files >= 50
    assert threads == 2
    gone = psutil.Process(holder.pid)
    holder.kill()
    holder.wait()
    monitor.measure({"it": gone})
    assert {len(values) for values in monitor.series.values()} == {1}


def test_a_child_is_found_by_its_program(holder):
    """A child process is found by its program, among all children."""
    found = child_of(psutil.Process(os.getpid()), "bytearray(30_000_000)")
    assert found
    assert found.pid == holder.pid
    assert child_of(psutil.Process(holder.pid), "anything") is None


@given(start=st.floats(50, 500), each=st.floats(0.5, 5), noise=st.floats(0, 3))
def test_a_leak_is_reported(start, each, noise):
    """A leak of half a megabyte per measurement is found in two hundred noisy measurements."""
    monitor = ResourceMonitor()
    for number in range(200):
        monitor.record("it", "memory, MB", start + number * each + noise * (number % 3))
    assert len(monitor.growing()) == 1
    assert "memory, MB of it grew from" in monitor.growing()[0]


@given(start=st.floats(50, 500), swing=st.floats(0, 100))
def test_fluctuation_is_not_growth(start, swing):
    """Neither fluctuation, however large, nor growth during the warm-up counts as a leak."""
    monitor = ResourceMonitor()
    for number in range(200):
        warming = start * min(1.0, number / 40)
        monitor.record("it", "memory, MB", warming + swing * (number % 4))
    assert monitor.growing() == []


def test_a_trend_needs_some_values():
    """A trend needs at least eight values."""
    with pytest.raises(ValueError, match="7 values"):
        trend([1.0] * 7)


def test_actions_run_at_their_intervals():
    """Due actions run at their intervals, and missed ones are not made up for."""
    time = [0.0]
    done: list[float] = []
    scheduler = Scheduler(clock=lambda: time[0])
    scheduler.every(10, lambda: done.append(time[0]))
    for time[0] in (5, 10, 12, 20, 55, 56, 65):
        scheduler.run_due()
    assert done == [10, 20, 55, 65]
