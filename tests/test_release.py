# SPDX-License-Identifier: Apache-2.0
"""The package can be published: metadata, long description, and the release workflow."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from readme_renderer import markdown
from trove_classifiers import classifiers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
URLS = PROJECT["urls"]
REPOSITORY = URLS["Repository"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
PINNED = re.compile(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


@pytest.fixture(scope="module")
def jobs() -> dict:
    """Return the jobs of the release workflow."""
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def in_repository(url: str) -> Path | None:
    """Return the file that an address of the repository shows, or None for another address."""
    found = re.fullmatch(rf"{re.escape(REPOSITORY)}/(?:blob|raw|tree)/main/([^#?]+)(?:#.*)?", url)
    return ROOT / found[1] if found else None


def test_every_address_of_the_repository_is_the_chosen_one():
    """All project URLs begin with the repository's, and no page has an address of another copy."""
    assert [url for url in URLS.values() if not url.startswith(REPOSITORY)] == []
    name = REPOSITORY.rpartition("/")[2]
    for page in PAGES:
        written = re.findall(
            rf"https://[\w./-]+/{name}(?=[/\s)\"]|$)", page.read_text(encoding="utf-8")
        )
        assert set(written) <= {REPOSITORY}, page.name


def test_every_project_url_shows_a_file_that_exists():
    """The links beside the package lead to files of the repository."""
    files = [in_repository(url) for url in URLS.values()]
    assert sum(file is not None for file in files) >= 3
    assert all(file.is_file() for file in files if file)


def test_the_readme_has_only_absolute_links():
    """On the page of the package, each link and picture works, and leads to a file that exists."""
    inline = re.findall(r"\]\(([^)]+)\)", README)
    defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", README, re.MULTILINE))
    used = set(re.findall(r"\]\[([^\]]+)\]", README))
    assert used == set(defined)
    assert [url for url in [*inline, *defined.values()] if not url.startswith("https://")] == []
    for label, url in defined.items():
        assert in_repository(url) == ROOT / label, label
        assert (ROOT / label).is_file(), label
        assert ("/raw/" in url) == ("/images/" in url), "a page shows a picture only by its content"


def test_the_long_description_is_rendered_with_its_pictures_and_tables():
    """The renderer of the package index shows headings, code, the table and every picture."""
    html = markdown.render(README)
    assert html is not None
    assert html.count("<img") == len(re.findall(r"!\[", README)) == 3
    assert html.count("<table") == 1
    assert "][" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)


@pytest.mark.slow
def test_the_metadata_of_the_wheel_is_valid(wheel):
    """The metadata keeps the specification, and its long description is the README."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = Metadata.from_email(archive.read(name), validate=True)
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.description or "").strip() == README.strip()
    assert metadata.project_urls == URLS
    assert str(metadata.requires_python) == PROJECT["requires-python"]


def test_every_classifier_is_known():
    """The package index refuses a classifier that it does not know."""
    assert [name for name in PROJECT["classifiers"] if name not in classifiers] == []


def test_every_extra_is_named_in_the_readme_and_has_a_reason():
    """The README names the extras of users, and each requirement of them is explained."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra, wanted in PROJECT["optional-dependencies"].items():
        if extra != "test":
            assert f"`[{extra}]`" in README
            for need in wanted:
                assert Requirement(need).specifier
                assert re.search(rf'"{re.escape(need)}",\s+# \w', text), need


@pytest.mark.parametrize(("broken", "status"), [("", 0), ("jobs: []\n", 1)])
def test_the_workflow_keeps_the_schema_of_workflows(tmp_path, broken, status):
    """The schema of workflows accepts the file and refuses a broken one."""
    file = tmp_path / "release.yml"
    file.write_text(broken or WORKFLOW.read_text(encoding="utf-8"), encoding="utf-8")
    words = ("-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(file))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout


def test_every_action_is_pinned_to_a_commit():
    """An action that was changed later is not used; the comment names its version."""
    used = [line.strip() for line in WORKFLOW.read_text(encoding="utf-8").splitlines()]
    used = [line.removeprefix("- ") for line in used if "uses:" in line]
    assert len(used) > 5
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_the_files_are_built_once_and_tested_before_they_are_published(jobs):
    """Each later job takes the files of the one build, and only a success leads to the next."""
    assert list(jobs) == ["build", "test", "publish"]
    assert (jobs["test"]["needs"], jobs["publish"]["needs"]) == ("build", ["build", "test"])
    text = WORKFLOW.read_text(encoding="utf-8")
    assert text.count("-m build ") == 1
    for name in ("test", "publish"):
        downloads = [
            step for step in jobs[name]["steps"] if "download-artifact" in step.get("uses", "")
        ]
        assert [step["with"]["name"] for step in downloads] == ["dist"]
    assert any("tests.newest dist/*.whl" in step.get("run", "") for step in jobs["test"]["steps"])


def test_only_the_job_that_publishes_can_prove_who_it_is(jobs):
    """No job has a secret; one has an identity, an environment, and no code of the repository."""
    whole = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert whole["permissions"] == {}
    assert "secrets." not in WORKFLOW.read_text(encoding="utf-8")
    assert [name for name, job in jobs.items() if "id-token" in job["permissions"]] == ["publish"]
    assert jobs["publish"]["environment"] == "release"
    steps = [step.get("uses", "run").partition("@")[0] for step in jobs["publish"]["steps"]]
    assert steps == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]


def test_each_python_of_the_classifiers_is_tested(jobs):
    """The wheel is tested with each Python that the package claims."""
    claimed = [name.rpartition(" :: ")[2] for name in PROJECT["classifiers"] if ":: 3." in name]
    assert jobs["test"]["strategy"]["matrix"]["python"] == claimed
