# SPDX-License-Identifier: Apache-2.0
"""Limits of every test: a timeout, and the signal handlers that it starts with.

A pytest plugin, which `tests/conftest.py` registers.
"""

import faulthandler
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from signal import setitimer as _set_timer  # a test may replace signal.setitimer
from types import FrameType
from typing import NoReturn

import pytest

LIMIT = 900.0
"""Timeout in seconds of each setup, each call and each teardown of a test."""

REMINDER = 60.0
"""Seconds after which the test is interrupted again, since cleaning up may hang as well."""


def usual_signals() -> None:
    """Restore the signal handlers of a terminal, for this process and all its children.

    A script's shell starts `pytest &` with SIGINT ignored, and every child inherits that. SIGTERM
    and SIGHUP interrupt like Ctrl-C, so that each test still ends its servers and schedules.
    """
    here = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == here:
            raise KeyboardInterrupt(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)  # a forked child is not pytest
        signal.raise_signal(number)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup stays in force
        signal.signal(signal.SIGHUP, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])


def pytest_configure() -> None:
    """Set the signal handlers before any test."""
    usual_signals()


@contextmanager
def _limited() -> Generator[None]:
    """Fail after LIMIT seconds by an exception, so that `finally` blocks and fixtures still run."""

    def fail(_number: int, _frame: FrameType | None) -> NoReturn:
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        pytest.fail(f"still running after {LIMIT:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    _set_timer(signal.ITIMER_REAL, LIMIT, REMINDER)
    try:
        yield
    finally:
        _set_timer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """Limit the fixtures of a test."""
    with _limited():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Limit a test."""
    with _limited():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """Limit the cleanup of a test."""
    with _limited():
        return (yield)
