# SPDX-License-Identifier: Apache-2.0
"""Descriptions of deployments link to the pages of the docs that explain them."""

import re
from pathlib import Path

import pytest
import yaml

from prefect_cometapi.deployments.commands.deploy import served, with_all_routes
from prefect_cometapi.deployments.docs_links import page_of, with_page
from prefect_cometapi.runway.models.requests import ROUTES

from .test_prefect_yaml import PREFECT_YAML

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("flow", [*ROUTES, "generate_batch", "collect"])
def test_each_page_and_its_heading_exist(flow):
    """The page of each flow is in docs/, with the heading that the link names."""
    name, _, heading = page_of(f"prefect_cometapi.flows.{flow}").partition("#")
    text = (DOCS / name).read_text(encoding="utf-8")
    headings = [
        line.lower().replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    assert not heading or heading in headings


def test_a_description_links_to_the_documentation_that_pyproject_names():
    """A link leads to a page beside the one that the package's metadata names."""
    shown = with_page("Makes a video.", "collect")
    assert re.fullmatch(
        r"Makes a video\.\n\n\[How it works\]\(https://\S+/docs/concepts\.md\)", shown
    )


def test_every_deployment_links_to_its_page():
    """Each deployment of `deploy` and of `serve` says what it does and links to its page."""
    content = with_all_routes(yaml.safe_load(PREFECT_YAML), "videos")
    deployed = {one["entrypoint"]: one["description"] for one in content["deployments"]}
    descriptions = deployed | {one.flow_name: one.description or "" for one in served()}
    assert len(descriptions) > len(deployed)
    for description in descriptions.values():
        says, _, link = description.partition("\n\n")
        assert says.endswith(".")
        assert link.startswith("[How it works](https://")
