# SPDX-License-Identifier: Apache-2.0
"""Platforms on which Prefect's workers start a container for each run, without a cluster.

A platform is its worker's own class, with which the worker resolves what it submits.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect.workers.base import BaseJobConfiguration, BaseWorker
from prefect_aws.workers.ecs_worker import ECSWorker
from prefect_azure.workers.container_instance import AzureContainerWorker
from prefect_docker.worker import DockerWorker
from prefect_gcp.workers.cloud_run import CloudRunWorker
from prefect_gcp.workers.cloud_run_v2 import CloudRunWorkerV2
from prefect_gcp.workers.vertex import VertexAIWorker
from prefect_kubernetes.worker import KubernetesWorker

COMMAND = ["prefect", "flow-run", "execute"]
"""Command that Prefect's workers run in a container."""


@dataclass(frozen=True)
class Container:
    """Container as it is submitted to a platform."""

    image: str
    env: Mapping[str, str]
    command: list[str]


def listed(env: list[dict[str, str]]) -> dict[str, str]:
    """Return environment variables that are written as a list."""
    return {one["name"]: one["value"] for one in env}


def _of_kubernetes(job: Any) -> Container:
    (its,) = job.job_manifest["spec"]["template"]["spec"]["containers"]
    return Container(its["image"], listed(its["env"]), its["args"])


def _of_docker(job: Any) -> Container:
    return Container(job.image, job.env, job.command.split())


def _of_ecs(job: Any) -> Container:
    (its,) = job.task_definition["containerDefinitions"]
    return Container(its["image"], job.env, job.command.split())


def _of_cloud_run(job: Any) -> Container:
    (its,) = job.job_body["spec"]["template"]["spec"]["template"]["spec"]["containers"]
    return Container(its["image"], listed(its["env"]), its["command"])


def _of_cloud_run_v2(job: Any) -> Container:
    (its,) = job.job_body["template"]["template"]["containers"]
    return Container(its["image"], listed(its["env"]), its["command"])


def _of_vertex(job: Any) -> Container:
    (its,) = job.job_spec["worker_pool_specs"]
    its = its["container_spec"]
    return Container(its["image_uri"], listed(its["env"]), its["command"])


def _of_azure(job: Any) -> Container:
    (group,) = job.arm_template["resources"]
    (its,) = group["properties"]["containers"]
    its = its["properties"]
    entrypoint, *command = its["command"]
    assert entrypoint == "/opt/prefect/entrypoint.sh"  # of Prefect's image
    return Container(its["image"], listed(its["environmentVariables"]), command)


@dataclass(frozen=True)
class Platform:
    """Platform of a work pool.

    Attributes:
        worker: Class of its workers.
        container: Function that finds the container in what a worker submits.
        required: Values of the variables that a user has to set in the pool.
    """

    worker: type[BaseWorker[Any, Any, Any]]
    container: Callable[[Any], Container]
    required: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def type(self) -> str:
        """Return the type of its work pools."""
        return self.worker.type

    async def create_pool(self, client: PrefectClient, name: str) -> WorkPool:
        """Create a work pool with the worker's own template."""
        template = self.worker.get_default_base_job_template()
        for variable, value in self.required.items():
            template["variables"]["properties"][variable]["default"] = value
        create = WorkPoolCreate(name=name, type=self.type, base_job_template=template)
        return await client.create_work_pool(create)

    async def job(self, client: PrefectClient, deployment: str) -> Any:
        """Return what a worker would submit for a new run of a deployment."""
        found = await client.read_deployment_by_name(deployment)
        run = await client.create_flow_run_from_deployment(found.id)
        assert found.work_pool_name
        configuration: type[BaseJobConfiguration] = self.worker.job_configuration  # pyright: ignore[reportGeneralTypeIssues]
        return await configuration.resolve_for_flow_run(
            run,
            client=client,
            work_pool=await client.read_work_pool(found.work_pool_name),
            worker_name="of-tests",
        )


_REGION = {"region": "europe-west1"}
KUBERNETES = Platform(KubernetesWorker, _of_kubernetes)
PLATFORMS = (
    KUBERNETES,
    Platform(DockerWorker, _of_docker),
    Platform(ECSWorker, _of_ecs),
    Platform(CloudRunWorker, _of_cloud_run, _REGION),
    Platform(CloudRunWorkerV2, _of_cloud_run_v2, _REGION),
    Platform(VertexAIWorker, _of_vertex, _REGION),
    Platform(
        AzureContainerWorker,
        _of_azure,
        {"resource_group_name": "videos", "subscription_id": "00000000-0000"},
    ),
)


def google_account(folder: Path) -> Path:
    """Write a key file of a Google account that does not exist, which its workers want to have."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": "videos",
        "private_key": key.decode(),
        "client_email": "tests@videos.example.com",
        "token_uri": "https://127.0.0.1:9/token",
    }
    file = folder / "google.json"
    file.write_text(json.dumps(account), encoding="utf-8")
    return file
