# SPDX-License-Identifier: Apache-2.0
"""The references of commands and names are those of the code."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import prefect_cometapi

DOCS = Path(__file__).parents[1] / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference() -> dict:
    """Return the names of the script that writes the pages."""
    return runpy.run_path(str(DOCS / "reference.py"))


def test_the_reference_is_current(tmp_path):
    """The pages are those that `python docs/reference.py` writes from the code of today."""
    # In a process of its own, since cyclopts reads its usage from the command that was started.
    subprocess.run([sys.executable, DOCS / "reference.py", tmp_path], check=True)
    for name in ("cli.md", "api.md"):
        written = (tmp_path / name).read_text(encoding="utf-8")
        assert (DOCS / name).read_text(encoding="utf-8") == written


@pytest.mark.parametrize("name", sorted(set(prefect_cometapi.__all__) - {"__version__"}))
def test_every_public_name_is_on_the_page(name):
    """Each name has a heading, is an async twin, or is in the tree of errors."""
    tree = re.findall(r"^[├│└─ ]*(\w+)  ", API, re.MULTILINE)
    assert re.search(rf"^### {name}$|^Async: `await {name}\(", API, re.MULTILINE) or name in tree


def test_every_parameter_of_a_flow_is_explained(reference):
    """Each parameter in the signature of a flow has a row with its meaning."""
    flows = API.partition("## Flows\n")[2].partition("\n## ")[0].split("\n### ")[1:]
    assert len(flows) > 5
    for flow in flows:
        signature = flow.partition(") ->")[0]
        assert set(re.findall(r"^    (\w+):", signature, re.MULTILINE)) == set(
            re.findall(r"^\| `(\w+)` \| .{9,} \|$", flow.partition("| parameter")[2], re.MULTILINE)
        )


def test_a_type_is_shown_without_modules_and_metadata(reference):
    """Optional, unions and nested modules become the words that a reader writes."""
    shown = reference["_type"]
    assert shown("typing.Optional[a.b.Price]") == "Price | None"
    assert shown("Union[dict[str, a.Price], Literal['x']]") == "dict[str, Price] | Literal['x']"
