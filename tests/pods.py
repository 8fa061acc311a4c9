# SPDX-License-Identifier: Apache-2.0
"""Pods: processes that cannot see each other, each in namespaces of its own, on one machine."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from .machine import path_of

_NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount-proc", "--uts")


def unshare() -> str:
    """Return the path of the program that makes namespaces; skip the test where it may not."""
    program = path_of("unshare", "util-linux")
    done = subprocess.run([program, *_NAMESPACES, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("namespaces are not allowed here (in Docker --privileged)")
    return program


def start_pod(
    name: str, words: list[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a command as the first process of a pod, with the pod's name as that of its host."""
    renamed = ("sh", "-c", 'hostname "$0" && exec "$@"', name)
    with log.open("wb") as output:
        return subprocess.Popen(
            [unshare(), *_NAMESPACES, *renamed, *words],
            env=dict(environment),
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
