# SPDX-License-Identifier: Apache-2.0
"""Deployments to pools that start a container for each run: what the workers would submit."""

import asyncio
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from pydantic import SecretStr

from prefect_cometapi.blocks import GenerationLedger
from prefect_cometapi.deployments.container_checks import check_containers
from prefect_cometapi.deployments.findings import Health
from prefect_cometapi.deployments.job_variables import (
    JobSettings,
    container_problems,
    environment_of,
    is_secret,
    needs_image,
    platform_adds,
)
from prefect_cometapi.flows import image_to_video
from prefect_cometapi.flows.runtime.work_pools import read_pool, starts_containers, variables_of
from prefect_cometapi.runway import CometAPISettings

from ..conftest import KEY
from ..platforms import COMMAND, KUBERNETES, PLATFORMS, google_account

pytestmark = pytest.mark.server

IMAGE = "registry.example.com/media/videos:0.1.0"
DAILY = "image-to-video/daily"
LEDGER = "COMETAPI_LEDGER_URL=generation-ledger/default"
STORAGE = "COMETAPI_STORAGE=s3://videos/daily"
SECRET = "COMETAPI_KEY=secret/of-containers"
CHART = {
    "apiConfig": set[str](),
    "image": {"repository", "prefectTag", "pullPolicy", "pullSecrets", "debug"},
    "config": {"workPool", "workQueues", "type", "baseJobTemplate", "limit", "name", "http2"},
    "selfHostedServerApiConfig": {"apiUrl", "uiUrl"},
}
"""Values of the chart prefect-worker, from its values.schema.json of 2026-08-18."""

KUBERNETES_VERSIONS = ("1.30", "1.34", kubernetes_validate.latest_version())
VALUES = Path(__file__).parents[2] / "deployments" / "kubernetes-values.yaml"


@pytest.fixture
async def client(clean_server):
    """Yield a client of a server on which the API key is saved as a block."""
    async with get_client() as client:
        await Secret(value=SecretStr(KEY)).asave("of-containers", overwrite=True)
        yield client


def full(pool: str, *words: str) -> tuple[str, ...]:
    """Return the command that sets everything that containers need."""
    settings = ("--env", LEDGER, "--env", STORAGE, "--secret", SECRET)
    return ("deploy", "--pool", pool, "--image", IMAGE, *settings, *words)


def pool_of(image: dict[str, Any] | None, **more: Any) -> WorkPool:
    """Return a work pool whose template has these variables, with or without an image."""
    properties = {"env": {}, **more} | ({} if image is None else {"image": image})
    template = {"variables": {"properties": properties}, "job_configuration": {}}
    return WorkPool.model_construct(name="k8s", type="kubernetes", base_job_template=template)


async def test_a_pod_gets_image_settings_and_key_and_fits_the_schema(client, shell):
    """A Kubernetes job has the image, the settings and the key, which the server does not store."""
    await KUBERNETES.create_pool(client, "k8s")
    done = shell(*full("k8s"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout
    deployment = await client.read_deployment_by_name(DAILY)
    assert KEY not in json.dumps(deployment.model_dump(mode="json"), default=str)
    assert "working_dir" not in deployment.job_variables
    job = await KUBERNETES.job(client, DAILY)
    pod = KUBERNETES.container(job)
    assert (pod.image, pod.command) == (IMAGE, COMMAND)
    assert pod.env["COMETAPI_KEY"] == KEY
    assert pod.env["COMETAPI_STORAGE"] == "s3://videos/daily"
    assert pod.env["COMETAPI_LEDGER_URL"] == "generation-ledger/default"
    check_job(job)


def check_job(job: Any) -> None:
    """Check a job manifest against the schemas of Kubernetes, without unknown fields.

    Prefect's worker demands two fields of a job in the pod, where Kubernetes ignores them.
    """
    pod = job.job_manifest["spec"]["template"]["spec"]
    for ignored in ("completions", "parallelism"):
        del pod[ignored]
    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(job.job_manifest, version, strict=True)


@pytest.mark.heavy
async def test_each_platform_gets_what_its_own_template_has(client, shell, tmp_path, monkeypatch):
    """The same command serves seven platforms, and a deployment moves from one to the next."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google_account(tmp_path)))
    for platform in PLATFORMS:
        pool = await platform.create_pool(client, platform.type)
        assert needs_image(pool)
        assert not platform_adds(pool)
        done = shell(*full(pool.name))
        assert done.returncode == 0, done.stdout + done.stderr
        deployment = await client.read_deployment_by_name(DAILY)
        assert deployment.work_pool_name == platform.type
        assert set(deployment.job_variables) == {"image", "env"}
        container = platform.container(await platform.job(client, DAILY))
        assert (container.image, container.command) == (IMAGE, COMMAND), platform.type
        assert container.env["COMETAPI_KEY"] == KEY
        assert container.env["COMETAPI_STORAGE"] == "s3://videos/daily"


@pytest.mark.heavy
async def test_what_was_set_by_hand_survives_the_next_image(client, shell):
    """A new image keeps the variables of a deployment; a process pool without template drops it."""
    await KUBERNETES.create_pool(client, "k8s")
    assert shell(*full("k8s")).returncode == 0
    daily = await client.read_deployment_by_name(DAILY)
    own = {**daily.job_variables, "namespace": "media", "memory_limit": "2Gi"}
    await client.update_deployment(daily.id, DeploymentUpdate(job_variables=own))
    newer = IMAGE.replace("0.1.0", "0.2.0")
    assert shell("deploy", "--pool", "k8s", "--image", newer).returncode == 0
    again = await client.read_deployment_by_name(DAILY)
    assert again.job_variables == own | {"image": newer}
    await client.create_work_pool(WorkPoolCreate(name="videos", type="process"))
    done = shell("deploy", "--pool", "videos")
    assert done.returncode == 0, done.stdout + done.stderr
    back = await client.read_deployment_by_name(DAILY)
    assert back.job_variables == {"working_dir": ".", "env": own["env"]}


@pytest.mark.parametrize(
    ("words", "status", "message", "next_step"),
    [
        ([], 1, "the work pool k8s (kubernetes) starts a container for each run", "--image REPO"),
        (["--image", "media/videos"], 2, "expected REPOSITORY/NAME:TAG", ""),
        (["--image", IMAGE, "--env", "COMETAPI_STORAGE"], 2, "expected NAME=VALUE", ""),
        (["--image", IMAGE, "--env", f"COMETAPI_KEY={KEY}"], 1, "is a secret", "--secret COMET"),
        (
            ["--image", IMAGE, "--env", "COMETAPI_LEDGER_URL=postgresql://u:hidden@db/x"],
            1,
            "COMETAPI_LEDGER_URL is a secret",
            "--secret COMETAPI_LEDGER_URL=secret/NAME",
        ),
        (
            ["--image", IMAGE, "--env", "AWS_SECRET_ACCESS_KEY=hidden"],
            1,
            "AWS_SECRET_ACCESS_KEY is a secret",
            "--secret AWS_SECRET_ACCESS_KEY=secret/NAME",
        ),
        (
            ["--image", IMAGE, "--env", "COMETAPI_LEDGER_URL=sqlite:////data/ledger.db"],
            1,
            "starts a container for each run; their ledger is a SQLite file",
            "Next: set COMETAPI_LEDGER_URL=postgresql://",
        ),
        (
            ["--image", IMAGE, "--env", "COMETAPI_STORAGE=./videos"],
            1,
            "their storage ./videos is deleted with each of them",
            "Next: set COMETAPI_STORAGE=s3://",
        ),
        (["--image", IMAGE, "--secret", "COMETAPI_KEY=sk-1"], 2, "expected NAME=BLOCK", ""),
        (
            ["--image", IMAGE, "--secret", "COMETAPI_KEY=secret/nowhere"],
            1,
            "there is no block secret/nowhere",
            "prefect block ls",
        ),
    ],
)
def test_a_mistake_is_refused_before_anything_is_deployed(
    clean_server, command, capsys, words, status, message, next_step
):
    """A missing image, a secret in plain sight and a local file are refused with the way out."""

    async def with_pool() -> None:
        async with get_client() as client:
            await KUBERNETES.create_pool(client, "k8s")

    async def deployed() -> int:
        async with get_client() as client:
            return len(await client.read_deployments())

    asyncio.run(with_pool())
    assert command("deploy", "--pool", "k8s", *words) == status
    shown = re.sub(r"[│\s]+", " ", capsys.readouterr().err)
    assert message in shown
    assert next_step in shown
    assert KEY not in shown
    assert "hidden" not in shown
    assert asyncio.run(deployed()) == 0


def test_an_image_for_a_pool_without_containers_is_refused(clean_server, command, capsys):
    """A process pool cannot use an image, and the message says what runs the flows there."""

    async def with_pool() -> None:
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name="videos", type="process"))

    assert command("deploy", "--pool", "k8s", "--image", IMAGE) == 1
    assert "prefect work-pool create k8s --type kubernetes" in capsys.readouterr().err
    asyncio.run(with_pool())
    assert command("deploy", "--image", IMAGE) == 1
    shown = capsys.readouterr().err
    assert "the work pool videos (process) has no job variable for an image" in shown
    assert "Next: prefect-cometapi deploy --pool videos" in shown


@pytest.mark.parametrize(
    ("default", "needed"),
    [("", True), ("prefecthq/prefect:3-latest", True), ("registry.example.com/own:1", False)],
)
def test_a_pool_with_an_image_of_its_own_needs_none(default, needed):
    """An image that the user has set in the pool is used; Prefect's own have no such package."""
    pool = pool_of({"type": "string", "default": default or None})
    assert needs_image(pool) == needed
    assert (JobSettings().refusal(pool) is not None) == needed


def test_an_environment_for_a_pool_without_one_is_refused():
    """A template without a variable for the environment is named."""
    pool = pool_of({"default": "own:1"})
    del pool.base_job_template["variables"]["properties"]["env"]
    refused = JobSettings.of(None, ["A=1"]).refusal(pool)
    assert refused
    assert "has no job variable for the environment" in refused[0]


@given(st.text("abc:@/?", max_size=20), st.text("ab:?=&", min_size=1, max_size=20))
def test_a_url_with_a_password_is_a_secret(user, password):
    """A password in a URL or in its query is found, and a URL without one is stored."""
    assume("/" not in user and "@" not in user and ":" not in user)
    assert is_secret("COMETAPI_LEDGER_URL", f"postgresql://{user}:{password}@db/ledger")
    assert is_secret("COMETAPI_LEDGER_URL", f"postgresql://db/ledger?a=1&password={password}")
    assert not is_secret("COMETAPI_LEDGER_URL", "postgresql://ledger@db:5432/ledger")
    assert not is_secret("COMETAPI_LEDGER_URL", "{{ prefect.blocks.secret.of-ledger }}")
    assert not is_secret("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_STORAGE_ACCOUNT_KEY", "hidden"),
        ("AZURE_STORAGE_CONNECTION_STRING", "hidden"),
        ("AZURE_STORAGE_KEY", "hidden"),
        ("cometapi_key", "hidden"),
        ("Cometapi_Access_Token", "hidden"),
        ("KEY", "hidden"),
        ("MY_PRIVATE_KEY", "hidden"),
        ("FTP_PASS", "hidden"),
        ("DB_PWD", "hidden"),
        ("COMETAPI_LEDGER_URL", "postgresql://u:p/w@db/l"),
        ("COMETAPI_LEDGER_URL", "postgresql+asyncpg://u:1/2?3@db/l"),
        ("COMETAPI_LEDGER_URL", "postgresql://db/l?sslpassword=x"),
        ("CACHE", "redis://:hidden@cache:6379"),
        ("SOURCE", "https://bucket.example.com/a.png?X-Amz-Signature=0a1b"),
        ("SOURCE", "https://account.example.com/a.png?sv=2024&sig=0a1b"),
        ("SETTINGS", "AccountName=a;AccountKey=0a1b"),
    ],
)
def test_a_secret_is_known_by_its_name_or_its_value(name, value):
    """Names in any case, passwords with any character, and signatures are secrets."""
    assert is_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COMETAPI_LEDGER_URL", "postgresql://db:5432/ledger"),
        ("COMETAPI_LEDGER_URL", "postgresql://ledger@[::1]:5432/ledger?sslmode=require"),
        ("COMETAPI_STORAGE", "s3://videos/spring@2?region=eu"),
        ("COMETAPI_BASE_URL", "https://gateway.example.com:8080/a@b"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("COMETAPI_PRICES", '{"gen3a_turbo": 0.32}'),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/run/google.json"),
        ("COMPASS", "north"),
        ("KEYSPACE", "videos"),
    ],
)
def test_an_ordinary_value_is_no_secret(name, value):
    """Addresses with a port or an @ in their path, and plain settings, are stored as they are."""
    assert not is_secret(name, value)


JSON = st.recursive(st.none() | st.text() | st.integers(), st.lists)
NAMES = st.sampled_from(["image", "env", "namespace", "working_dir", "env.FOO", "volumes"])


@given(st.dictionaries(NAMES.filter(lambda name: name != "env"), JSON), st.booleans())
def test_only_variables_of_the_pool_remain_and_none_of_them_is_lost(current, has_image):
    """A deployment keeps each variable that its pool accepts, and gets the image and settings."""
    pool = pool_of({} if has_image else None, namespace={})
    settings = JobSettings.of(IMAGE if has_image else None, ["A=1"])
    known = set(variables_of(pool))
    found = settings.variables(pool, current)
    assert {name.split(".")[0] for name in found} <= known
    for name, value in current.items():
        if name.split(".")[0] in known and name != "image":
            assert found[name] == value
    assert found["env"] == {"A": "1"}
    assert found.get("image") == (IMAGE if has_image else None)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, ["no COMETAPI_KEY", "no COMETAPI_LEDGER_URL", "no COMETAPI_STORAGE"]),
        (
            {
                "COMETAPI_KEY": "{{ x }}",
                "COMETAPI_LEDGER_URL": "sqlite:///a",
                "COMETAPI_STORAGE": "a",
            },
            ["a SQLite file", "their storage a is deleted"],
        ),
        (
            {
                "COMETAPI_KEY": "{{ x }}",
                "COMETAPI_LEDGER_URL": "{{ prefect.blocks.secret.ledger }}",
                "COMETAPI_STORAGE": "s3-bucket/videos",
            },
            [],
        ),
    ],
)
def test_what_containers_lack_or_lose_is_named(env, words):
    """The problems of an environment are those that a run would meet."""
    found = container_problems(pool_of({}), {"image": IMAGE, "env": env})
    assert len(found) == len(words)
    for problem, word in zip(found, words, strict=True):
        assert word in problem.message
        assert "COMETAPI_" in problem.fix
    assert container_problems(pool_of(None), {}) == []
    (no_image, *_rest) = container_problems(pool_of({}), {"env": env})
    assert "--image REPOSITORY/NAME:TAG" in no_image.fix


def test_variables_of_pool_and_deployment_count_together():
    """The environment of a container is that of the template, the pool and the deployment."""
    pool = pool_of({}, env={"default": {"A": "pool", "B": "pool"}})
    pool.base_job_template["job_configuration"]["env"] = [
        {"name": "A", "value": "template"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "cometapi", "key": "KEY"}}},
    ]
    found = environment_of(pool, {"env": {"B": "deployment"}})
    assert found == {"A": "pool", "B": "deployment", "KEY": "{{ }}"}


async def test_a_type_that_the_server_does_not_know_keeps_all_variables(client):
    """The template of a new pool is that of its type; a type of a plugin may have none."""
    for kind, is_container in (("docker", True), ("process", False), ("of-a-plugin", False)):
        await client.create_work_pool(WorkPoolCreate(name=kind, type=kind))
        pool = await read_pool(client, kind)
        assert starts_containers(pool) == is_container
        assert bool(variables_of(pool)) == (kind != "of-a-plugin")
    assert JobSettings().variables(pool, {"working_dir": "."}) == {"working_dir": "."}


async def test_the_values_of_the_chart_make_a_pool_whose_pods_take_the_secret(client, shell):
    """The template in the values file is accepted, and its job fits the schema of Kubernetes."""
    values = yaml.safe_load(VALUES.read_text(encoding="utf-8"))["worker"]
    config = values["config"]
    template = json.loads(config["baseJobTemplate"]["configuration"])
    create = WorkPoolCreate(
        name=config["workPool"], type=config["type"], base_job_template=template
    )
    pool = await client.create_work_pool(create)
    assert platform_adds(pool)
    done = shell("deploy", "--pool", pool.name, "--image", IMAGE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout
    job = await KUBERNETES.job(client, DAILY)
    check_job(job)
    pod = job.job_manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "cometapi"}}]
    assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1001}
    container = KUBERNETES.container(job)
    assert (container.image, container.command) == (IMAGE, COMMAND)
    assert container.env["COMETAPI_STORAGE"] == "s3://BUCKET/videos"


@pytest.mark.heavy
async def test_the_doctor_names_what_the_containers_of_a_pool_lack(client, shell, postgres):
    """Before the first paid run, the command finds a missing image, setting and shared ledger."""
    await client.create_work_pool(WorkPoolCreate(name="k8s", type="kubernetes"))
    deployment = await client.create_deployment(
        await client.create_flow(image_to_video),
        name="daily",
        work_pool_name="k8s",
        entrypoint="prefect_cometapi.flows.image_to_video",
        job_variables={"env": {"COMETAPI_LEDGER_URL": "generation-ledger/of-containers"}},
    )

    async def checked(**variables: Any) -> dict[str, Health]:
        changes = DeploymentUpdate(job_variables=variables)
        await client.update_deployment(deployment, changes)
        return {one.message: one.health for one in await check_containers(client, "k8s")}

    lost = {"env": {"COMETAPI_LEDGER_URL": "generation-ledger/of-containers"}}
    assert list((await checked(**lost)).values()) == [
        Health.FAILED,  # the image
        Health.WARNING,  # the key
        Health.WARNING,  # the storage
        Health.FAILED,  # the block, which does not exist
    ]
    await GenerationLedger(url=SecretStr("sqlite:////tmp/x.db")).asave("of-containers")
    (sqlite,) = [one for one in await checked(**lost) if "SQLite" in one]
    assert sqlite == "their ledger is a SQLite file, which is not shared (daily)"
    url = SecretStr(postgres.create_database())
    await GenerationLedger(url=url).asave("of-containers", overwrite=True)
    env = lost["env"] | {"COMETAPI_KEY": "{{ x }}", "COMETAPI_STORAGE": "s3://videos"}
    assert await checked(image=IMAGE, env=env) == {
        "image, API key, ledger and storage are set": Health.PASSED
    }
    assert await check_containers(client, "nowhere") == []
    done = shell("doctor", "--pool", "k8s")
    assert "containers of k8s" in done.stdout


def test_the_page_names_variables_that_the_platforms_have():
    """Each type and variable in the table of the page is one of that platform."""
    page = (VALUES.parents[1] / "docs" / "containers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [A-Z].*? \| (`.*?) \| `(prefect-.*?)` \| (`.*?) \|", page, re.MULTILINE)
    templates = {
        platform.type: platform.worker.get_default_base_job_template()["variables"]["properties"]
        for platform in PLATFORMS
    }
    named = {kind: cell for kinds, _, cell in rows for kind in re.findall("`(.*?)`", kinds)}
    assert set(named) == set(templates)
    for kind, cell in named.items():
        assert set(re.findall("`(.*?)`", cell)) <= set(templates[kind]), kind


def test_the_values_name_what_the_chart_and_the_settings_have():
    """Every key of the values is one of the chart's, and every setting one of this package's."""
    text = VALUES.read_text(encoding="utf-8")
    (name, worker) = next(iter(yaml.safe_load(text).items()))
    assert name == "worker"
    for key, value in worker.items():
        assert key in CHART
        if CHART[key]:
            assert set(value) <= CHART[key]
    assert (
        worker["image"]["prefectTag"]
        == f"{importlib.metadata.version('prefect')}-python3.11-kubernetes"
    )
    named = set(re.findall(r"COMETAPI_(\w+)", text))
    assert named <= {setting.upper() for setting in CometAPISettings.model_fields}
