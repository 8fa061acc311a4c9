# SPDX-License-Identifier: Apache-2.0
"""The installed package, and the dependencies between its modules."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from .machine import path_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("runway", "blocks", "flows", "deployments", "sandbox")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))
MODULES = [
    *SOURCES,
    *sorted(
        path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
    ),
]

EXPORTS = {
    "runway": """
        AssetURL AuthenticationError BatchFailed BatchResult BudgetExceeded Character
        CharacterPerformanceRequest CometAPIError CometAPISettings CompletedGeneration
        ContentModeration DeliveryError DownloadInterrupted Entry FetchedVideo
        Generation GenerationCancelled GenerationError GenerationFailed
        GenerationNotFound GenerationRequest GenerationResult GenerationTimeout
        IdempotencyKeyConflict ImageToVideoRequest InvalidEnvironment InvalidManifest InvalidOutput
        InvalidRequest InvalidSource ItemResult Keyframe KeyframeRange Ledger
        LedgerCorrupted LedgerOutdated LedgerUnavailable NotSubmitted Outcome
        OutputExpired Performance PositionedImage Provenance ProvenanceMissing QuotaExceeded
        Reference RunwayClient
        ServiceUnavailable SigningError SourceUnavailable SourceUnreachable Spending
        StagedFileMissing State Status StorageError StorageUnavailable StoredVideo Submission
        SubmissionUncertain TaggedImage TextToImageRequest TooManyRunAttempts
        UnexpectedResponse UnknownTaskId Verification VideoToVideoRequest sign_copy
        verify_provenance
    """,
    "blocks": "CometAPICredentials GenerationLedger",
    "flows": """
        CollectResult Collected RunwayJob RunwayJobRun acharacter_performance acollect afetch_output
        afinish_generation agenerate_batch agenerate_batch_shard aimage_to_video apersist_output
        apoll_generation asubmit_generation atext_to_image avideo_to_video character_performance
        collect fetch_output finish_generation generate_batch generate_batch_shard image_to_video
        persist_output poll_generation submit_generation text_to_image video_to_video
    """,
    "sandbox": """
        AcceptedJob Fault FaultKind FaultPlan FaultRoute RecordedRequest ReplyShape Sandbox
        SandboxApp SandboxConfig create_app
    """,
    "deployments": "",
}
"""Every public name that the code lists. A name leaves this list in a new major version only. Each
route of the table of models adds the names below."""

ROUTES = json.loads((ROOT / "package" / "models.json").read_text(encoding="utf-8"))["routes"]
ADDED = {
    "runway": {its["request"] for its in ROUTES.values()},
    "flows": {name for route in ROUTES for name in (route, f"a{route}")},
}

_GROUND = {
    "errors",
    "redact",
    "escapes",
    "signatures",
    "plain_help",
    "processes",
    "http_clients",
    "aiohttp_transport",
}
MAY_IMPORT: dict[str, set[str]] = {
    "runway.models": {f"runway.{name}" for name in _GROUND},
    "runway.storage": {f"runway.{name}" for name in (*_GROUND, "models")},
    "runway.media": {f"runway.{name}" for name in (*_GROUND, "models")},
    "runway.ledger": {f"runway.{name}" for name in (*_GROUND, "models", "storage")},
    "runway.sources": {f"runway.{name}" for name in (*_GROUND, "models", "storage", "media")},
    "runway.api": {f"runway.{name}" for name in (*_GROUND, "models", "ledger", "settings")},
    "runway.batch": {f"runway.{name}" for name in (*_GROUND, "models", "ledger", "storage")},
    "runway": {"runway"},
    "blocks": {"blocks", "runway"},
    "flows.runtime": {"blocks", "runway"},
    "flows.ui": {"flows.runtime", "blocks", "runway"},
    "flows.steps": {"flows.ui", "flows.runtime", "blocks", "runway"},
    "flows.batch": {
        "flows.parameters",
        "flows.steps",
        "flows.ui",
        "flows.runtime",
        "blocks",
        "runway",
    },
    "flows": {"flows", "blocks", "runway"},
    "deployments.commands": {"deployments", "flows", "blocks", "runway", "sandbox"},
    "deployments": {"deployments", "flows", "blocks", "runway", "sandbox"},
    "sandbox.clips": {"sandbox.config"},
    "sandbox.messages": {"sandbox.clips"},
    "sandbox.faults": {"sandbox.messages", "sandbox.request_log"},
    "sandbox": {"sandbox"},
}
"""The modules that each package may import besides its own."""


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_names_are_these(package):
    """No name that users import disappears or is added by accident."""
    module = import_module(f"prefect_cometapi.{package}")
    exported = getattr(module, "__all__", [])
    written = {*EXPORTS[package].split()}
    assert sorted(exported) == sorted(written | ADDED.get(package, set()))
    assert all(hasattr(module, name) for name in exported)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_it_is_for(package):
    """`help()` on a package begins with a sentence."""
    documentation = import_module(f"prefect_cometapi.{package}").__doc__ or ""
    assert documentation.strip().splitlines()[0].endswith(".")


@pytest.mark.parametrize("package", ["flows", "sandbox"])
def test_a_name_that_a_lazy_package_does_not_have_is_an_attribute_error(package):
    """A misspelt import raises AttributeError, as in any other module."""
    module = import_module(f"prefect_cometapi.{package}")
    with pytest.raises(AttributeError, match="image_to_vidoe"):
        _ = module.image_to_vidoe


def imported(path: Path) -> set[str]:
    """Return all modules that a file imports, with names relative to the namespace package."""
    here = [*path.relative_to(ROOT).parts][:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return {name.removeprefix("prefect_cometapi.") for name in found}


def module_of(path: Path) -> str:
    """Return the name of a module, relative to the namespace package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_of(path): path for path in SOURCES}


def known(path: Path) -> set[str]:
    """Return the modules of this package that a file imports."""
    names = {name if name in NAMES else name.rpartition(".")[0] for name in imported(path)}
    return names & set(NAMES)


def room_of(path: Path) -> str:
    """Return the innermost package of a module that has its own import rules."""
    rooms = [room for room in MAY_IMPORT if f"{module_of(path)}.".startswith(f"{room}.")]
    return max(rooms, key=len)


def is_within(name: str, rooms: set[str]) -> bool:
    """Return whether a module belongs to one of the given packages."""
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_from_a_higher_layer(path):
    """Lower layers do not import higher ones, and the sandbox shares no code with what it tests."""
    room = room_of(path)
    assert {name for name in known(path) if not is_within(name, {room, *MAY_IMPORT[room]})} == set()
    if path.relative_to(ROOT).parts[0] in {"runway", "sandbox"}:
        assert not [name for name in imported(path) if name.split(".")[0] == "prefect"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_state_of_a_process_has_its_reason(path):
    """A module-level collection that fills up while the process runs says why it is there."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    silent = [
        ast.unparse(statement)
        for statement, follower in zip(body, [*body[1:], None], strict=True)
        if is_empty_collection(statement) and not is_text(follower)
    ]
    assert silent == []


def is_empty_collection(statement: ast.stmt) -> bool:
    """Return whether a statement assigns a collection without elements."""
    value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.Call) and not value.args:
        return ast.unparse(value.func).split(".")[-1] in {"set", "dict", "list", "WeakSet"}
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) == "defaultdict"
    return isinstance(value, ast.Dict | ast.List) and not ast.unparse(value)[1:-1]


def is_text(statement: ast.stmt | None) -> bool:
    """Return whether a statement is a string, as the docstring of a name is."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def test_no_modules_import_each_other_in_a_circle():
    """There are no import cycles, apart from the `__init__` modules."""
    left = {name: known(path) - {name} for name, path in NAMES.items()}
    doors = {name for name, path in NAMES.items() if path.name == "__init__.py"}
    left = {name: names - doors for name, names in left.items() if name not in doors}
    while ready := {name for name, names in left.items() if not names & left.keys()}:
        left = {name: names for name, names in left.items() if name not in ready}
    assert left == {}


def test_the_arrows_are_seen():
    """The import checks do find imports, so they cannot pass vacuously."""
    assert known(ROOT / "flows" / "generate.py") >= {"flows.runtime.log", "runway.errors"}
    assert known(ROOT / "deployments" / "cli.py") >= {"flows", "sandbox", "runway.errors"}
    assert "prefect.blocks.abstract.CredentialsBlock" in imported(
        ROOT / "blocks" / "credentials.py"
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_is_licensed_and_short(path):
    """Every module names its licence and has at most 600 lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    assert len(lines) <= 600


def test_no_file_names_a_place_to_install_from():
    """No file sets a package index, because the choice of one belongs to the user."""
    git = path_of("git")
    listing = subprocess.run(
        [git, "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if listing.returncode:
        pytest.skip(f"git does not list the files (git clone them): {listing.stderr.strip()}")
    tracked = listing.stdout.split("\n")
    index = re.compile(
        r"--(?:extra-)?index-url[ =]\S*:|//[^\s/]*pypi[^\s/]*/|/simple\b/?", re.IGNORECASE
    )
    naming = []
    for name in filter(None, tracked):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        if index.search(path.read_bytes().decode("utf-8", "ignore")):
            naming.append(name)
    assert len(tracked) > 50
    assert naming == []


@pytest.mark.parametrize(
    "statement",
    ["import prefect_cometapi.flows", "from prefect_cometapi.flows import image_to_video"],
)
def test_importing_the_flows_is_light(statement):
    """Importing the flows does not load libraries that only a running flow or a sandbox needs."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(shown.stdout))
    assert "prefect_cometapi.flows" in loaded
    assert loaded & {"av", "sqlalchemy", "asyncpg", "fastapi", "jinja2"} == set()


# Tests of the wheel in a separate environment.


def isolated(*words: str | Path, cwd: Path) -> str:
    """Run a program without this process's Python settings and return its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    """The wheel adds no folder such as `flows` or `tests` to a user's site-packages."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "prefect_cometapi",
        "prefect_cometapi-0.1.0.dist-info",
    }
    ours = {name for name in names if name.startswith("prefect_cometapi/")}
    written = {f"prefect_cometapi/{path.relative_to(ROOT).as_posix()}" for path in SOURCES}
    typed = {f"prefect_cometapi/{package}/py.typed" for package in PACKAGES}
    door = {f"prefect_cometapi/{name}" for name in ("__init__.py", "py.typed", "models.json")}
    data = {
        f"prefect_cometapi/deployments/{name}" for name in ("prefect.yaml", "commands/comet.jpg")
    }
    parts = ("html", "card.html", "css", "js")
    data |= {f"prefect_cometapi/flows/batch/gallery.{part}" for part in parts}
    assert ours == written | typed | data | door
    assert "prefect_cometapi-0.1.0.dist-info/licenses/LICENSE" in names


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.heavy
def test_every_public_name_comes_from_the_wheel(installed, tmp_path, package):
    """Every public name is imported from the installed wheel."""
    code = f"""
import importlib, json, sys
module = importlib.import_module("prefect_cometapi.{package}")
for name in json.loads(sys.argv[1]):
    getattr(module, name)
print(module.__file__)
"""
    names = json.dumps(EXPORTS[package].split())
    place = isolated(installed / "python", "-c", code, names, cwd=tmp_path).strip()
    assert Path(place).is_relative_to(installed.parent)
    assert Path(place).parts[-3:] == ("prefect_cometapi", package, "__init__.py")


@pytest.mark.slow
@pytest.mark.heavy
def test_prefect_finds_the_blocks_of_an_installed_package(installed, tmp_path):
    """`prefect block register` is not needed: the entry point leads Prefect to the blocks."""
    code = """
from importlib.metadata import entry_points
ours = [entry for entry in entry_points(group="prefect.collections") if "comet" in entry.name]
blocks, job = sorted(ours, key=lambda entry: entry.value)
print(blocks.value, blocks.load().CometAPICredentials.get_block_type_slug())
print(job.value, job.load().RunwayJob.get_block_type_slug())
"""
    blocks, job = isolated(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert blocks.split() == ["prefect_cometapi.blocks", "cometapi-credentials"]
    assert job.split() == ["prefect_cometapi.flows.job", "runway-job"]


@pytest.mark.slow
@pytest.mark.heavy
def test_the_installed_command_runs(installed, tmp_path):
    """The wheel installs the console script, which prints its help and its version."""
    script = installed / "prefect-cometapi"
    assert "image-to-video" in isolated(script, "--help", cwd=tmp_path)
    assert isolated(script, "--version", cwd=tmp_path).strip() == "0.1.0"
    for command in ("image-to-video", "video-to-video", "finish", "collect", "ledger", "sandbox"):
        assert isolated(script, command, "--help", cwd=tmp_path)
