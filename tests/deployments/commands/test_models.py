# SPDX-License-Identifier: Apache-2.0
"""The command `models`, and the warnings about models that CometAPI does not sell."""

import asyncio
import json

import pytest
from prefect.client.orchestration import get_client

from prefect_cometapi.deployments.commands.models import (
    default_models,
    model_rows,
    models_of,
    models_of_deployments,
    unsold,
)
from prefect_cometapi.flows import image_to_video
from prefect_cometapi.runway.models.catalogue import CatalogueModel, CatalogueReply
from prefect_cometapi.runway.models.model_limits import known_models

SOLD = CatalogueModel(id="gen4.5", is_runway=True, routes=("image_to_video",), per_second=0.1)


@pytest.fixture
def listed(command, capsys):
    """Run the command; return its exit status and its output on one line."""

    def run(*words: str) -> tuple[int, str]:
        status = command("models", *words)
        return status, " ".join(capsys.readouterr().out.split())

    return run


def test_what_is_sold_is_listed_with_its_price(sandbox, listed):
    """Each Runway model has its routes, its price, and whether its limits are known."""
    status, shown = listed()
    assert status == 0
    assert "gen3a_turbo Gen-3 Alpha Turbo image_to_video 0.256 yes yes" in shown
    assert "gen4.5 Gen-4.5 image_to_video 0.096/s yes yes" in shown
    assert "gpt-5-mini" not in shown
    assert [request.headers.get("authorization") for request in sandbox.requests] == [None]


def test_without_the_catalogue_the_known_models_are_listed(sandbox, listed):
    """The command says that the catalogue did not answer, and does not fail."""
    sandbox.add_fault("models:html")
    status, shown = listed()
    assert status == 0
    assert "gen3a_turbo image_to_video unknown unknown yes" in shown
    assert "catalogue is unknown or incomplete: HTTP 200 without JSON" in shown


def test_programs_read_json(sandbox, listed):
    """The JSON has a row for each model, and the problem if there is one."""
    found = json.loads(listed("--json")[1])
    assert found["problem"] is None
    rows = {row["model"]: row for row in found["models"]}
    assert rows["gen4_aleph"] == {
        "model": "gen4_aleph",
        "name": "Gen-4 Aleph",
        "routes": ["video_to_video"],
        "price": "0.12/s",
        "sold": True,
        "limits_known": True,
    }


def test_a_known_model_that_is_not_in_the_catalogue_is_not_sold():
    """Only a complete catalogue says so."""
    for is_complete, sold in ((True, False), (False, None)):
        rows = model_rows(CatalogueReply(models=(SOLD,), is_complete=is_complete))
        others = dict.fromkeys(known_models(), sold)
        assert {row.model: row.sold for row in rows} == others | {"gen4.5": True}


def test_only_a_complete_catalogue_gives_a_warning():
    """A model is reported once, with everything that uses it."""
    wanted = {"one": ["gen9", "gen4.5"], "two": ["gen9"]}
    complete = CatalogueReply(models=(SOLD,), is_complete=True)
    assert unsold(complete, wanted) == [
        "CometAPI's catalogue does not list the model gen9 (one, two)"
    ]
    assert unsold(CatalogueReply(models=(SOLD,)), wanted) == []


def test_the_models_of_a_deployment_are_those_of_its_requests():
    """A request without a model has the default one; a manifest is not read."""
    image, video = {"promptImage": "a"}, {"videoUri": "b", "model": "aleph2"}
    assert models_of({"request": image}) == ["gen3a_turbo"]
    assert models_of({"request": {"video_uri": "b"}}) == ["gen4_aleph"]
    assert models_of({"requests": [image, video]}) == ["gen3a_turbo", "aleph2"]
    assert models_of({"requests": "a.jsonl"}) == models_of({}) == []
    assert default_models() == {
        "default of image_to_video": ["gen3a_turbo"],
        "default of video_to_video": ["gen4_aleph"],
        "default of character_performance": ["act_two"],
        "default of text_to_image": ["gen4_image"],
    }


@pytest.mark.server
@pytest.mark.heavy
def test_a_deployment_with_a_model_that_is_not_sold_is_reported(clean_server, shell):
    """`deploy`, `setup` and `doctor` warn about it, and do not fail for it."""
    for name in ("setup", "deploy"):
        done = shell(name, "--pool", "of-models")
        assert (done.returncode, "Warning:" in done.stdout) == (0, False)

    async def deploy_ours() -> dict[str, list[str]]:
        request = {"promptImage": "https://example.com/a.jpg", "model": "gen9"}
        async with get_client() as client:
            await client.create_deployment(
                await client.create_flow(image_to_video),
                "ours",
                entrypoint="prefect_cometapi.flows.image_to_video",
                parameters={"request": request},
            )
            return await models_of_deployments(client)

    assert asyncio.run(deploy_ours())["deployment ours"] == ["gen9"]
    sentence = "catalogue does not list the model gen9 (deployment ours)"
    for name in ("setup", "deploy", "doctor"):
        done = shell(name, "--pool", "of-models")
        assert sentence in " ".join(done.stdout.split()), name
