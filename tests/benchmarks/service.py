# SPDX-License-Identifier: Apache-2.0
"""Services in processes of their own, so that they do not compete with what is measured."""

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


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


@contextmanager
def script_process(script: str, *words: object) -> Iterator[str]:
    """The URL that a script of this folder prints; it runs while the block does."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"{script} did not start")
        yield url
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


@contextmanager
def lean_process(
    clip: Path | None = None, *, rendering: float = 0.0, variation: float = 0.0, seed: int = 1
) -> Iterator[str]:
    """The URL of the service of the benchmarks, which draws nothing and counts everything.

    Args:
        clip: What every job gives; drawn now where there is none.
        rendering: Mean seconds that a job takes.
        variation: Their standard deviation as a share of the mean.
        seed: Of the times that jobs take.
    """
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as folder:
        words = ("--rendering", rendering, "--variation", variation, "--seed", seed)
        with script_process("lean.py", clip or draw_clip(Path(folder) / "clip.mp4"), *words) as url:
            yield url


def draw_clip(path: Path) -> Path:
    """Write the clip that all jobs give: five seconds, drawn as the sandbox draws."""
    from prefect_cometapi.sandbox.clips.render import Recipe, render

    recipe = Recipe(
        route="image_to_video",
        uri="https://example.com/benchmark.jpg",
        prompt="benchmark",
        seed=1,
        width=1280,
        height=720,
        seconds=5,
    )
    path.write_bytes(render(recipe, None))
    return path
