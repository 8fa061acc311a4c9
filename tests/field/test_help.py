# SPDX-License-Identifier: Apache-2.0
"""Help and types: what a user sees in a shell, an editor and a notebook."""

import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prefect_cometapi

from ..installation import ROOT

PACKAGES = ("runway", "blocks", "flows", "deployments", "sandbox")
NOISE = ("FieldInfo(", "Annotated[", "Validator(", "MinLen(")

USER = """
from prefect import flow
from prefect_cometapi import (
    GenerationResult, ImageToVideoRequest, RunwayJob, RunwayJobRun, asubmit_generation,
    aimage_to_video, character_performance, generate_batch, image_to_video, submit_generation,
)

REQUEST = {"promptImage": "https://example.com/cat.jpg"}

@flow
def teaser() -> GenerationResult:
    submit_generation(REQUEST)
    submit_generation(ImageToVideoRequest(prompt_image="https://example.com/cat.jpg"))
    generate_batch([REQUEST, {"id": "owl", "promptImage": "https://example.com/owl.jpg"}])
    character_performance(
        {"character": {"type": "image", "uri": "a.png"}, "reference": {"uri": "b.mp4"}}
    )
    run: RunwayJobRun = RunwayJob(request=REQUEST).trigger()
    result: GenerationResult = run.fetch_result()
    return image_to_video({"promptImage": result.videos[0].uri, "duration": 5})

async def awaited() -> GenerationResult:
    await asubmit_generation(REQUEST)
    run: RunwayJobRun = await RunwayJob(request=REQUEST).trigger()
    result: GenerationResult = await run.fetch_result()
    return await aimage_to_video(REQUEST)

wrong: int = image_to_video(REQUEST)
image_to_video(17)
submit_generation("cat.png")
"""


@pytest.mark.heavy
def test_a_type_checker_accepts_dicts_where_the_code_does(tmp_path):
    """Somebody gives dicts as requests: pyright accepts them, and reports only real mistakes."""
    file = tmp_path / "user.py"
    file.write_text(USER)
    # A type checker finds an editable installation only if it is strict, so it gets links.
    package = tmp_path / "library" / "prefect_cometapi"
    package.mkdir(parents=True)
    for source in (*(ROOT / "package").iterdir(), *(ROOT / name for name in PACKAGES)):
        (package / source.name).symlink_to(source)
    settings = {"extraPaths": [str(package.parent)], "include": [file.name]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    lines = USER.splitlines()
    wrong = {
        lines[int(line.split(":")[1]) - 1] for line in printed.splitlines() if " error: " in line
    }
    assert wrong == {*lines[-3:]}, printed


def test_the_help_of_every_public_name_is_for_people():
    """Somebody calls help() for a name of the package: signatures have types and no internals."""
    for name in dir(prefect_cometapi):
        value: Any = getattr(prefect_cometapi, name)
        if callable(value):
            shown = pydoc.plain(pydoc.render_doc(value))
            assert not [line for line in shown.splitlines() for word in NOISE if word in line], name


def test_a_signature_names_every_parameter_with_its_type():
    """Somebody looks at a flow, also with other options: the signature fits in a few lines."""
    flow: Any = prefect_cometapi.image_to_video
    for each in (flow, flow.with_options(name="mine"), prefect_cometapi.aimage_to_video):
        shown = str(inspect.signature(each))
        assert shown.startswith("(request: prefect_cometapi.runway.ImageToVideoRequest, ")
        assert "storage: str | None = None" in shown
        assert len(shown) < 500
    properties = flow.parameters.properties  # the form keeps descriptions and limits
    assert properties["variation"]["minimum"] == 1
    assert properties["storage"]["description"]


@pytest.mark.server
def test_a_notebook_shows_the_result_of_a_flow(prefect_server, sandbox):
    """Somebody ends a cell with the result of a flow: poster and player are shown."""
    result = prefect_cometapi.image_to_video(
        {"promptImage": "https://example.com/cat.jpg?sig=canary"}
    )
    shown = result._repr_html_()
    assert '<video controls preload="none"' in shown
    assert 'poster="data:image/jpeg;base64,' in shown
    assert f'{Path(result.videos[0].uri).name}"' in shown
    assert result.task_id in shown
    assert "canary" not in shown
    assert len(shown) < 300_000
