# SPDX-License-Identifier: Apache-2.0
"""The pages are true: what they show is taken, what they link is there."""

import re
from pathlib import Path

import pytest

from prefect_cometapi.runway import CometAPISettings
from prefect_cometapi.runway.batch import Outcome
from prefect_cometapi.runway.manifest import read_rows
from prefect_cometapi.runway.rows import batch_keys, check_rows

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BATCHES = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")


def test_the_manifest_of_the_page_is_taken(tmp_path):
    """Both of its rows are requests, one of each kind."""
    (shown,) = re.findall(r"```json\n(.*?)```", BATCHES, re.DOTALL)
    (tmp_path / "shown.jsonl").write_text(shown, encoding="utf-8")
    items, bad = check_rows(read_rows(str(tmp_path / "shown.jsonl")), batch_keys("shown"))
    assert bad == []
    assert [item.request.route for item in items] == ["image_to_video", "video_to_video"]


def test_every_outcome_that_stays_is_explained():
    """Whatever stands in the output at the end has a row in the table."""
    for outcome in Outcome:
        assert (f"| `{outcome}` |" in BATCHES) == outcome.is_final


def test_every_setting_that_is_named_exists():
    """And the limit of the full history is the default."""
    named = set(re.findall(r"COMETAPI_([A-Z_]+)", BATCHES))
    assert named <= {name.upper() for name in CometAPISettings.model_fields}
    limit = CometAPISettings.model_fields["full_history_up_to"].default
    assert f"Up to {limit} items" in BATCHES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    """Pictures and pages that are linked are there."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
