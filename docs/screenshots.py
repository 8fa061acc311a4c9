# SPDX-License-Identifier: Apache-2.0
"""Take the pictures in docs/images: a real Prefect server, real runs, a real browser.

Run it with ``python docs/screenshots.py [FOLDER]``; it needs Chromium and the ``test`` extra. The
runs go through a 429 and a broken poll, so that retries are there to be seen. A page that does not
show what it should ends it with an error.
"""

import base64
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from draw_gallery import SCENES, draw
from draw_gallery import take as take_gallery
from playwright.sync_api import Locator, Page, expect, sync_playwright

from prefect_cometapi.deployments.prefect_env import quieten_prefect

IMAGES = Path(__file__).parent / "images"
SETTLE_MILLISECONDS = 2000
WIDTH, HEIGHT = 1360, 860
"""Size of the browser's window, in pixels."""


@contextmanager
def prefect_server(home: str) -> Iterator[str]:
    """Start a Prefect server on a free port, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "PREFECT_HOME": home,
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "COMETAPI_LEDGER_URL": f"sqlite:///{home}/ledger.db",
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


def make_runs(videos: str) -> tuple[str, str]:
    """Run the flows against the sandbox; return the ids of a run with retries, and a failed one."""
    from prefect_cometapi.deployments.commands.demo import PICTURE
    from prefect_cometapi.flows import collect, image_to_video, video_to_video
    from prefect_cometapi.runway import SubmissionUncertain
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
            "promptImage": str(PICTURE),
            "promptText": "The comet drifts over the lake, slow zoom.",
            "ratio": "1280:768",
            "seed": 4,
        }
        state = image_to_video(request, return_state=True)
        clip = state.result().videos[0].uri
        dawn = {
            "videoUri": clip,
            "promptText": "Turn the night into a warm dawn.",
            "seed": 6,
        }
        video_to_video(dawn)
        for key in ("sku-17/november", "sku-18/november"):
            image_to_video(request, idempotency_key=key, wait=False)
        sandbox.add_fault("create:reset-after")
        with suppress(SubmissionUncertain):
            image_to_video(request, idempotency_key="sku-19/november")
        collect()
        sandbox.add_fault("create:failed")
        failed = image_to_video(request, return_state=True)
    return str(state.state_details.flow_run_id), str(failed.state_details.flow_run_id)


def make_batch(videos: str) -> str:
    """Run a batch with one refused, one uncertain and some unbought items, and return its id.

    Its pictures are data URIs of drawn lakes, so that its posters differ.
    """
    from prefect_cometapi.flows import generate_batch
    from prefect_cometapi.sandbox import Sandbox

    lakes = {scene.id: data_uri(draw(scene)) for scene in SCENES}
    requests = [
        {
            "id": f"{lake}-{number:02}",
            "promptImage": lakes[lake],
            "promptText": "The camera glides over the water.",
            "ratio": "1280:768",
            "seed": number,
        }
        for number, lake in enumerate(list(lakes) * 6)
    ]
    faults = ["create:invalid-request:after=5,times=1", "create:reset-after:after=11,times=1"]
    with Sandbox(render_seconds=6, faults=faults) as sandbox:
        os.environ |= {
            "COMETAPI_BASE_URL": sandbox.url,
            "COMETAPI_STORAGE": f"{videos}/lakes",
            "COMETAPI_PRICES": '{"gen3a_turbo": 0.32}',
        }
        state = generate_batch(
            requests, idempotency_key="lakes", max_in_flight=8, max_spend=9, return_state=True
        )
    return str(state.state_details.flow_run_id)


def make_deployments() -> None:
    """Run the commands of docs/production.md."""
    script = Path(sys.executable).parent / "prefect-cometapi"
    for command in ("setup", "deploy"):
        subprocess.run([script, command], check=True, stdout=subprocess.DEVNULL)


def data_uri(picture: bytes) -> str:
    """Return a JPEG that CometAPI accepts."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def take(
    page: Page,
    picture: Path,
    *expected: str,
    width: int = WIDTH,
    height: int = HEIGHT,
    top: int = 0,
) -> None:
    """Take a picture of the left part of a page, once it has the expected texts."""
    for text in expected:
        page.get_by_text(text).first.wait_for(timeout=60_000)
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    page.screenshot(path=picture, clip={"x": 0, "y": top, "width": width, "height": height})


def artifact(server: str, title: str, run_id: str | None = None) -> str:
    """Return the address of the only artifact with this beginning of its title."""
    found = httpx.post(f"{server}/api/artifacts/filter", json={}).json()
    (one,) = [
        item["id"]
        for item in found
        if (item["description"] or "").startswith(f"### {title}")
        and run_id in {None, item["flow_run_id"]}
    ]
    return f"{server}/artifacts/artifact/{one}"


def take_all(page: Page, server: str, run_id: str, folder: Path) -> None:
    """Take pictures of the run with its retries, its artifacts, and the collector's table."""
    page.goto(f"{server}/runs/flow-run/{run_id}")
    take(page, folder / "run.png", "Completed", "Retry 1/5 will start", "Stored ")
    page.set_viewport_size({"width": WIDTH, "height": 1160})  # the list shows only what fits
    page.get_by_text("Artifacts", exact=True).last.click()
    titles = ("Facts about", "Video ", "Rendering of", "Poster of")
    take(page, folder / "artifacts.png", *titles, height=1020)
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    page.goto(artifact(server, "Poster of", run_id))
    page.wait_for_function("[...document.images].some(image => image.naturalWidth === 640)")
    take(page, folder / "poster.png", "A frame from the middle of", height=560)
    page.goto(artifact(server, "Video", run_id))
    expect(page.locator("code, pre").get_by_text(".mp4").first).to_be_visible(timeout=60_000)
    expect(page.locator("a[href^='file:']")).to_have_count(0)
    page.goto(artifact(server, "Collected"))
    take(page, folder / "collected.png", "uncertain", "ledger show sku-19/november", height=420)
    # A list of tiles would show the newest artifact of all runs.
    page.goto(f"{server}/artifacts")
    page.get_by_text("Create an artifact").wait_for(timeout=60_000)


def take_failed(page: Page, server: str, run_id: str, folder: Path) -> None:
    """Take a picture of a run that failed."""
    page.goto(f"{server}/runs/flow-run/{run_id}")
    page.set_viewport_size({"width": WIDTH, "height": 1700})
    expected = ("Failed", "Next: change the image or the prompt", "Finished in state Failed('Gen")
    take(page, folder / "failed.png", *expected, top=500, height=780)
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def take_batch(page: Page, server: str, run_id: str, folder: Path) -> None:
    """Take pictures of the batch's run, its table of results, and its posters."""
    page.goto(f"{server}/runs/flow-run/{run_id}")
    page.get_by_text("PartlyStored").first.wait_for(timeout=60_000)
    page.wait_for_timeout(4 * SETTLE_MILLISECONDS)  # its graph is large
    take(page, folder / "batch.png")
    page.goto(artifact(server, "Results of batch lakes", run_id))
    take(page, folder / "batch-results.png", "27 stored", "uncertain", "not bought", height=700)
    page.goto(artifact(server, "Posters of batch lakes", run_id))
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 640)")
    take(page, folder / "batch-posters.png", "The first 24 of")


def fill_choices(page: Page) -> None:
    """Fill the model from its list and as a text, and choose to suspend the run."""

    def field(description: str) -> Locator:
        return page.locator(".schema-form-property", has=page.get_by_text(description)).last

    def choose(description: str, option: str) -> None:
        # A click opens the list for a moment only.
        field(description).locator(".p-select-button__control").press("ArrowDown")
        page.get_by_role("option", name=option, exact=True).click()

    model, wait = "Runway model to use.", "Wait for the video."
    field(model).get_by_text("Known models", exact=True).click()
    choose(model, "gen4_turbo")
    text = field(model).locator("textarea")
    expect(text).to_have_value("gen4_turbo")
    text.fill("gen9_preview")
    expect(text).to_have_value("gen9_preview")
    text.fill("gen3a_turbo")
    for option in ("false", "suspend", "true"):
        choose(wait, option)
        expect(field(wait).locator(".p-select-button__value")).to_have_text(option)


def take_production(page: Page, server: str, folder: Path) -> None:
    """Take pictures of a deployment's form, a block, and the automations."""
    api = f"{server}/api"
    daily = httpx.get(f"{api}/deployments/name/image-to-video/daily").json()["id"]
    page.set_viewport_size({"width": WIDTH, "height": 1300})
    page.goto(f"{server}/deployments/deployment/{daily}/run")
    page.get_by_text("Seconds of video.").wait_for(timeout=60_000)
    fill_choices(page)
    duration, *_others = page.locator("input[type=number]").all()
    duration.fill("7")
    page.get_by_text("Submit", exact=True).last.click()
    refusal = page.get_by_text("7 is not one of [5, 10, None]")
    refusal.wait_for(timeout=60_000)
    page.get_by_text("Parameters", exact=True).scroll_into_view_if_needed()
    take(page, folder / "form.png", "7 is not one of", "Idempotency key", height=1190)
    runs = {"deployments": {"id": {"any_": [daily]}}}
    assert httpx.post(f"{api}/flow_runs/filter", json=runs).json() == []
    page.goto(f"{server}/deployments/deployment/{daily}")
    page.get_by_text("Description", exact=True).first.click(timeout=60_000)
    take(page, folder / "deployment.png", "How it works", height=520)
    page.set_viewport_size({"width": WIDTH, "height": 960})
    page.goto(f"{server}/automations")
    take(page, folder / "automations.png", "mark silent runs as crashed", height=940)
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    blocks = httpx.post(f"{api}/block_documents/filter", json={}).json()
    (block,) = [one["id"] for one in blocks if one["block_type_name"] == "CometAPI Credentials"]
    page.goto(f"{server}/blocks/block/{block}")
    # The rest of the page is a logo, which is loaded from the network.
    take(page, folder / "block.png", "Runway version", "********", width=1065, height=640)


def main() -> None:
    """Take all pictures."""
    images = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, prefect_server(f"{folder}/home") as server:
        run_id, failed_id = make_runs(f"{folder}/videos")
        batch_id = make_batch(f"{folder}/videos")
        make_deployments()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            take_all(page, server, run_id, images)
            take_failed(page, server, failed_id, images)
            take_batch(page, server, batch_id, images)
            take_production(page, server, images)
            take_gallery(browser, images)
            browser.close()


if __name__ == "__main__":
    main()
