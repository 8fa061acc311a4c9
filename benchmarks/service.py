# SPDX-License-Identifier: Apache-2.0
"""Services in processes of their own, so that they do not compete with the measured code."""

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
    """Run a sandbox while the block runs and yield its URL."""
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
    """Run a script of this folder while the block runs and yield the URL that it prints."""
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
    """Run the benchmark service while the block runs and yield its URL.

    Args:
        clip: Video that every job returns; drawn now if there is none.
        rendering: Mean seconds that a job takes.
        variation: Their standard deviation as a share of the mean.
        seed: Seed of the rendering times.
    """
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as folder:
        words = ("--rendering", rendering, "--variation", variation, "--seed", seed)
        with script_process("lean.py", clip or draw_clip(Path(folder) / "clip.mp4"), *words) as url:
            yield url


def draw_clip(path: Path) -> Path:
    """Write the clip of all jobs: five seconds, drawn as the sandbox draws."""
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
