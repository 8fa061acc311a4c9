# SPDX-License-Identifier: Apache-2.0
"""Take the pictures in docs/images: a real Prefect server, real runs, a real browser.

Run it with ``python docs/screenshots.py``; it needs Chromium and the ``test`` extra. The runs go
through a 429 and a broken poll, so that retries are there to be seen.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

from prefect_cometapi.deployments.quiet import quieten_prefect

IMAGES = Path(__file__).parent / "images"


@contextmanager
def prefect_server(home: str) -> Iterator[str]:
    """A Prefect server of its own on a free port; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "PREFECT_HOME": home,
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    quieten_prefect()
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def make_runs(videos: str) -> str:
    """Run both flows against the sandbox; gives the id of the run with retries."""
    from prefect_cometapi.deployments.cli import as_source
    from prefect_cometapi.deployments.demo import PICTURE
    from prefect_cometapi.flows import image_to_video, video_to_video
    from prefect_cometapi.sandbox import Sandbox

    faults = ["create:429:value=2", "task:503:after=2"]
    with Sandbox(render_seconds=8, faults=faults) as sandbox:
        os.environ |= {
            "COMETAPI_BASE_URL": sandbox.url,
            "COMETAPI_KEY": "sandbox",
            "COMETAPI_POLL_INTERVAL": "1",
            "COMETAPI_STORAGE": videos,
        }
        request = {
            "promptImage": as_source(str(PICTURE)),
            "promptText": "The comet drifts over the lake, slow zoom.",
            "ratio": "1280:768",
        }
        state = image_to_video(request, return_state=True)
        clip = state.result().videos[0].uri
        dawn = {"videoUri": as_source(clip), "promptText": "Turn the night into a warm dawn."}
        video_to_video(dawn)
    return str(state.state_details.flow_run_id)


def take(page: Page, name: str, wait_for: str, settle: float = 2.0) -> None:
    """One picture of the page as it is, once a text on it is there and it has come to rest."""
    page.get_by_text(wait_for).first.wait_for(timeout=30_000)
    page.wait_for_timeout(settle * 1000)
    page.screenshot(path=IMAGES / f"{name}.png")


def take_all(page: Page, server: str, run_id: str) -> None:
    """The run with its retries and its artifacts, and the page of all artifacts."""
    page.goto(f"{server}/runs/flow-run/{run_id}")
    take(page, "run", "Finished in state")
    page.get_by_text("Artifacts", exact=True).last.click()
    take(page, "run-artifacts", "cometapi-poster")
    page.goto(f"{server}/artifacts")
    take(page, "artifacts", "cometapi-poster")
    page.get_by_text("cometapi-poster").first.click()
    take(page, "poster", "cometapi-poster")


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, prefect_server(f"{folder}/home") as server:
        run_id = make_runs(f"{folder}/videos")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1360, "height": 860}, color_scheme="light")
            take_all(page, server, run_id)
            browser.close()


if __name__ == "__main__":
    main()
