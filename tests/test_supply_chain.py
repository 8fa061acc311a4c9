# SPDX-License-Identifier: Apache-2.0
"""Dependencies are locked and licensed, and anybody can build the same wheel."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from . import newest
from .installation import ROOT, copied_sources, empty_environment

PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
TEST_LOCK = (ROOT / "constraints-test.txt").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
VIRAL = re.compile(r"\b(AGPL|Affero|(?<!L)GPL(?!.*exception)|SSPL)\b", re.IGNORECASE)


def versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", lock, re.MULTILINE))


def test_every_dependency_is_bounded_above():
    """Each dependency has an upper bound and a reason, so a new major version is tried first."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for wanted in PROJECT["dependencies"]:
        assert "<" in wanted, wanted
        assert re.search(rf'"{re.escape(wanted)}",\s+# \w', text), wanted


def test_the_build_backend_is_locked_too():
    """Each lock holds the build backend, in the version range that the build requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["build-system"]["requires"]
    assert project["dependency-groups"]["build"] == wanted
    for need in map(Requirement, wanted):
        assert need.name in versions(LOCK)
        assert need.name in versions(TEST_LOCK)
        assert need.specifier.contains(versions(LOCK)[need.name])


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["demo", "tests"])
@pytest.mark.heavy
def test_the_readme_installs_nothing_that_is_not_locked(number, tmp_path):
    """After the lock, the README's command installs this package without any download."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)[number]
    _venv, lock, package, _use = command.split(" && ")
    assert lock.startswith(".venv/bin/pip install --no-deps -r constraints")
    program, *words = shlex.split(package)
    assert program == ".venv/bin/pip"
    copy = copied_sources(tmp_path)
    python = empty_environment(tmp_path / "venv") / "python"
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    offline.pop("PIP_FIND_LINKS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, *words],
        cwd=copy,
        env=offline,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_command_of_ours_builds_with_what_is_not_locked():
    """Every command that installs this folder builds it with the locked backend."""
    pages = ["README.md", "CONTRIBUTING.md", "justfile", ".ci/run"]
    files = [*(ROOT / page for page in pages), *(ROOT / "docs").rglob("*.md")]
    installing = [
        line
        for file in files
        for line in file.read_text(encoding="utf-8").replace("&&", "\n").splitlines()
        if re.search(r"pip install\b.*\s\.(\s|$)", line)
    ]
    assert len(installing) >= 3
    assert [line for line in installing if "--no-build-isolation" not in line] == []


@pytest.mark.parametrize("lock", [LOCK, TEST_LOCK], ids=["constraints", "constraints-test"])
def test_everything_locked_has_a_hash(lock):
    """A file that was replaced on the way is not installed."""
    for entry in re.split(r"\n(?=[A-Za-z0-9])", lock.partition("\n\n")[0] or lock):
        if "==" in entry:
            assert "--hash=sha256:" in entry, entry[:80]


def test_tests_run_with_what_is_installed():
    """Both locks name the same versions."""
    ours, tested = versions(LOCK), versions(TEST_LOCK)
    assert {name: tested.get(name) for name in ours} == ours


def test_every_package_is_listed_with_its_licence():
    """Every package is listed, and no licence requires users to publish their own code."""
    _head, _line, *rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert {name: version for name, version, _ in rows} == versions(LOCK)
    assert len(rows) > 50
    for name, _, licence in rows:
        has_a_choice = "Artistic" in licence
        assert has_a_choice or not VIRAL.search(licence), (name, licence)


def test_the_sbom_tells_a_machine_the_same():
    """The SBOM lists each package with its version and dependencies, down from this one."""
    sbom = json.loads((ROOT / "docs" / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    assert {part["name"]: part["version"] for part in sbom["components"]} == versions(LOCK)
    needs = {each["ref"]: each.get("dependsOn", []) for each in sbom["dependencies"]}
    reached = {sbom["metadata"]["component"]["bom-ref"]}
    while more := {part for one in reached for part in needs[one]} - reached:
        reached |= more
    assert reached >= {part["bom-ref"] for part in sbom["components"] if part.get("licenses")}


def built(folder: Path, kind: str) -> Path:
    """Build a distribution from a separate copy of the sources."""
    copy = copied_sources(folder)
    build = [
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        folder / "to",
    ]
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    done = subprocess.run(
        [*build, copy], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (folder / "to").iterdir()
    return file


@pytest.mark.slow
@pytest.mark.heavy
def test_anybody_builds_the_same_wheel(tmp_path):
    """Builds from two copies of the sources are equal byte for byte."""
    first, second = (built(tmp_path / name, "wheel").read_bytes() for name in ("one", "two"))
    assert hashlib.sha256(first).hexdigest() == hashlib.sha256(second).hexdigest()


@pytest.mark.slow
@pytest.mark.heavy
def test_the_source_distribution_holds_what_a_build_needs_and_nothing_else(tmp_path):
    """The source distribution holds the image's Dockerfile, and no tests or local settings."""
    with tarfile.open(built(tmp_path, "sdist")) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    tops = {name.split("/")[0] for name in names if name}
    packages = {"package", "runway", "blocks", "flows", "deployments", "sandbox"}
    files = {"pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "setup.cfg"}
    image = {"Dockerfile", ".dockerignore", "constraints.txt"}
    assert tops == packages | files | image | {"prefect_cometapi.egg-info"}
    assert {f"{package}/__init__.py" for package in packages} <= names


def test_the_newest_versions_are_tried_on_every_python_of_the_classifiers():
    """`.ci/run` tries what a user installs today, on each Python that the package claims."""
    assert re.search(r"^for recipe in .*\bnewest\b", CI, re.MULTILINE)
    assert newest.VERSIONS[0] == PROJECT["requires-python"].removeprefix(">=")
    assert len(newest.VERSIONS) >= 3


def test_the_newest_versions_are_not_held_back(monkeypatch):
    """A variable that pins versions, or one of Prefect, does not reach the new environment."""
    for name in ("PIP_CONSTRAINT", "PYTHONPATH", "PREFECT_API_URL", "COMETAPI_KEY"):
        monkeypatch.setenv(name, "here")
    seen = newest.run(Path("somewhere"), sys.executable, "-c", "import os; print(*os.environ)")
    assert not {"PIP_CONSTRAINT", "PYTHONPATH", "PREFECT_API_URL", "COMETAPI_KEY"} & set(
        seen.split()
    )


def test_a_command_that_fails_with_the_newest_versions_fails_the_check():
    """A failed command ends the check with its output."""
    with pytest.raises(SystemExit, match=r"(?s)why it failed.*exit status 3"):
        newest.run(Path("somewhere"), sys.executable, "-c", "print('why it failed'); exit(3)")


def test_an_interpreter_that_does_not_start_is_not_taken(tmp_path, monkeypatch):
    """A command of pyenv for a version that is not selected does not count as that version."""
    for place in (tmp_path / "python3.99", tmp_path / "versions/3.99.1/bin/python3.99"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("#!/bin/sh\nexit 127\n")
        place.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert len(list(newest.interpreters("3.99"))) == 2
    assert newest.find_interpreter("3.99") is None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert newest.find_interpreter(here) == Path(sys.executable)


def test_the_versions_that_differ_from_the_lock_are_named():
    """The result names each package whose newest version is not the locked one."""
    frozen = "".join(f"{name}=={version}\n" for name, version in versions(TEST_LOCK).items())
    assert newest.changes(frozen) == "nothing"
    locked = versions(TEST_LOCK)["prefect"]
    newer = frozen.replace(f"prefect=={locked}\n", "Prefect==99.1\n") + "new_one==1.0\n"
    assert newest.changes(newer) == f"new-one (not locked) -> 1.0, prefect {locked} -> 99.1"
