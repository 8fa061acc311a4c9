# SPDX-License-Identifier: Apache-2.0
"""Requirements of tests beyond Python, and how to install them.

A test whose program or kernel feature is missing is skipped, with one line that says how to get it.
In CI, which installs the programs, the test fails instead, so that nothing is skipped silently.
"""

import os
import shutil
import socket
from typing import NoReturn

import pytest

IN_CI = frozenset({"chromium", "postgresql", "redis-server", "strace"})
"""Debian packages that `.ci/run` installs."""


def how_to_get(program: str, package: str) -> str:
    """Return one line that names what is missing and how to get it."""
    return f"{program} is not installed (apt-get install {package})"


def leave_out(program: str, package: str) -> NoReturn:
    """Skip a test for a missing program; fail it where CI installs that program."""
    message = how_to_get(program, package)
    pytest.fail(message) if os.environ.get("CI") and package in IN_CI else pytest.skip(message)


def path_of(program: str, package: str | None = None) -> str:
    """Return the path of a program that a test needs; skip the test if it is missing."""
    return shutil.which(program) or leave_out(program, package or program)


def has_ipv6() -> bool:
    """Return whether this machine has the IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(
    not has_ipv6(), reason="there is no IPv6 here (sysctl net.ipv6.conf.lo.disable_ipv6=0)"
)
