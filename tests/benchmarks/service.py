# SPDX-License-Identifier: Apache-2.0
"""A sandbox in a process of its own, so that it does not compete with what is measured."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


def _serve(pipe: Connection, options: dict[str, Any]) -> None:
    from prefect_cometapi.sandbox import Sandbox

    with Sandbox(**options) as sandbox:
        pipe.send(sandbox.url)
        pipe.recv()


@contextmanager
def sandbox_process(**options: Any) -> Iterator[str]:
    """The URL of a sandbox that runs while the block does."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, options), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        here.send("stop")
        process.join(timeout=10)
        process.kill()
