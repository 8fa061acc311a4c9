# SPDX-License-Identifier: Apache-2.0
"""The image of the Dockerfile: what it is built from, and a run in an environment built like it."""

import asyncio
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import boto3
import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed, Scheduled
from pydantic import SecretStr

from prefect_cometapi.sandbox import Sandbox

from ..conftest import KEY
from ..installation import ROOT
from ..platforms import COMMAND, KUBERNETES, Container
from ..s3 import environment as s3_environment
from ..waiting import kill, until

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PATIENCE = 180.0
"""Seconds that a pod may take on a busy machine."""

IMAGE = "registry.example.com/media/videos:0.1.0"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    lines = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def pip_commands() -> list[str]:
    """Return the commands of the build that use pip, without the options of RUN."""
    runs = [re.sub(r"^(--\S+ )*", "", text) for name, text in instructions() if name == "RUN"]
    return [run for run in runs if run.startswith("pip ")]


def test_it_is_prefects_image_of_the_locked_version_and_a_user_without_privileges():
    """Prefect's version is the locked one, and the last user is not root, by its number."""
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (locked,) = re.findall(r"^prefect==(\S+)", lock, re.MULTILINE)
    bases = [text.split()[0] for name, text in instructions() if name == "FROM"]
    assert bases == [f"prefecthq/prefect:{locked}-python3.11", "dependencies", "dependencies"]
    assert importlib.metadata.version("prefect") == locked
    name, user = instructions()[-1]
    assert name == "USER"
    assert int(user) > 0


def test_nothing_else_is_in_it():
    """The last stage installs the wheel and adds a user; no secret and no file are copied."""
    names = [name for name, _text in instructions()]
    last = names[len(names) - names[::-1].index("FROM") :]
    assert last == ["ARG", "RUN", "RUN", "ENV", "WORKDIR", "USER"]
    assert pip_commands()[0].count("--require-hashes") == 1
    assert "COMETAPI_KEY" not in TEXT


def in_context() -> list[Path]:
    """Return the files that .dockerignore leaves in the context of the build."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    return [ROOT / name for name in kept]


def build_context(folder: Path) -> Path:
    """Copy the context of the build, as Docker does."""
    folder.mkdir()
    for path in in_context():
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)
    return folder


def test_the_context_has_what_the_wheel_is_built_from_and_nothing_private():
    """The context has every package, and neither local settings nor videos nor the tests."""
    names = {path.name for path in in_context()}
    assert all(path.exists() for path in in_context())
    packages = {"package", "runway", "blocks", "flows", "deployments", "sandbox"}
    assert names >= packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert not [name for name in names if fnmatch.fnmatch(name, ".*") or name in {"tests", "docs"}]
    assert "*" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Run the build's pip commands in an empty environment; return its folder of scripts."""
    folder = tmp_path_factory.mktemp("image")
    context = build_context(folder / "build")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=120)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "EXTRAS": "s3",
    }
    for command in pip_commands():
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=context,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return venv / "bin"


@pytest.fixture
def slow_sandbox():
    """Start a sandbox that renders for as long as the first pod lives."""
    with Sandbox(render_seconds=600) as sandbox:
        yield sandbox


@pytest.mark.server
@pytest.mark.heavy
@pytest.mark.slow
async def test_the_pods_command_makes_a_video_in_an_environment_built_like_the_image(
    clean_server, slow_sandbox, shell, built, postgres, s3, tmp_path
):
    """A pod's command and variables alone, started again in an empty home, store one video."""
    sandbox = slow_sandbox
    client_of_s3 = boto3.client("s3", endpoint_url=s3, **_keys(s3))
    client_of_s3.create_bucket(Bucket="pods")
    ledger = postgres.create_database()
    await Secret(value=SecretStr(KEY)).asave("of-containers", overwrite=True)
    await Secret(value=SecretStr(ledger)).asave("ledger-of-containers", overwrite=True)
    settings = s3_environment(s3) | {
        "COMETAPI_STORAGE": "s3://pods/videos",
        "COMETAPI_BASE_URL": sandbox.url,
        "COMETAPI_POLL_INTERVAL": "0.1",
    }
    await Secret(value=SecretStr(settings.pop("AWS_SECRET_ACCESS_KEY"))).asave("s3-of-containers")
    words = [word for item in settings.items() for word in ("--env", "=".join(item))]
    words += ["--secret", "COMETAPI_KEY=secret/of-containers"]
    words += ["--secret", "AWS_SECRET_ACCESS_KEY=secret/s3-of-containers"]
    words += ["--secret", "COMETAPI_LEDGER_URL=secret/ledger-of-containers"]
    videos = client_of_s3.list_objects_v2
    async with get_client() as client:
        await KUBERNETES.create_pool(client, "k8s")
        done = shell("deploy", "--pool", "k8s", "--image", IMAGE, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        pod = KUBERNETES.container(await KUBERNETES.job(client, "image-to-video/daily"))
        assert pod.command == COMMAND
        run = UUID(pod.env["PREFECT__FLOW_RUN_ID"])
        first = start(pod, built, tmp_path / "first")
        try:
            await asyncio.to_thread(until, lambda: len(sandbox.accepted) == 1, "it", PATIENCE)
        finally:
            kill(first)
        await client.set_flow_run_state(run, Crashed(), force=True)
        await client.set_flow_run_state(run, Scheduled(), force=True)
        finish_rendering(sandbox)
        second = start(pod, built, tmp_path / "second")
        try:
            status = await asyncio.to_thread(second.wait, PATIENCE)
        finally:
            kill(second)
        log = (tmp_path / "second" / "log").read_text(encoding="utf-8")
        assert status == 0, log
        state = (await client.read_flow_run(run)).state
    assert state
    assert state.type is StateType.COMPLETED, state.message
    stored = [one["Key"] for one in videos(Bucket="pods")["Contents"]]
    assert len([key for key in stored if key.endswith(".mp4")]) == len(sandbox.accepted) == 1
    assert KEY not in log


def start(pod: Container, scripts: Path, home: Path) -> subprocess.Popen[bytes]:
    """Start a pod's command with its variables only, in an empty home of its own."""
    home.mkdir()
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            [str(scripts / pod.command[0]), *pod.command[1:]],
            cwd=home,
            env={**pod.env, "HOME": str(home), "PATH": str(scripts)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish_rendering(sandbox: Sandbox) -> None:
    """Let videos be ready at once."""
    jobs = sandbox._app.jobs
    jobs._config = jobs._config.model_copy(update={"render_seconds": 0.0})


def _keys(url: str) -> dict[str, str]:
    found = s3_environment(url)
    return {
        "aws_access_key_id": found["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": found["AWS_SECRET_ACCESS_KEY"],
        "region_name": found["AWS_DEFAULT_REGION"],
    }
