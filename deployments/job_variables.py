# SPDX-License-Identifier: Apache-2.0
"""Job variables of the deployments in a work pool: image and environment of its containers.

A pool says in its own base job template which variables it accepts. Everything here is pure; the
command ``deploy`` reads the pool from the server.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..flows.runtime.block_loading import is_block_name
from ..flows.runtime.work_pools import (
    SHARED_LEDGER,
    SHARED_STORAGE,
    starts_containers,
    variables_of,
)
from ..runway.storage.paths import local_path

if TYPE_CHECKING:
    from prefect.client.schemas.objects import WorkPool

PREFECT_IMAGE = "prefecthq/prefect:"
"""Start of the names of Prefect's own images, which do not have this package."""

_SECRET_NAME = re.compile(
    r"(^|_)KEY$|API_?KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|(^|_)PASS(_|$)|_PWD$|TOKEN"
    r"|CONN(ECTION)?_?STR",
    re.IGNORECASE,  # the settings of this package are read in any case
)
"""Names of variables whose values are secrets, of this package and of clients of storages."""

_PASSWORD = re.compile(r"://[^/?#@\s]*:(?!\d+[/?#])[^@?#\s]*@|^postgres[\w+]*://[^/@\s]*:[^@\s]*@")
"""Password in a URL. In that of a database it may contain any character, also unescaped."""

_SECRET_PART = re.compile(
    r"(^|[?&;\s])([\w.-]*(password|passwd|secret|signature|token)|sig|pwd"
    r"|(api|access|account)[-_]?key)=",
    re.IGNORECASE,
)
"""Secret in the query of a URL, or in a list of settings such as a connection string."""

SECRET_FIELDS = {
    "secret": "",
    "cometapi-credentials": ".api_key",
    "generation-ledger": ".url",
}
"""Block types that hold a secret, and where in the block it is."""

NEEDED = {
    "COMETAPI_KEY": "--secret COMETAPI_KEY=cometapi-credentials/default",
    "COMETAPI_LEDGER_URL": "--env COMETAPI_LEDGER_URL=generation-ledger/default",
    "COMETAPI_STORAGE": "--env COMETAPI_STORAGE=s3://BUCKET/FOLDER",
}
"""Settings that a container needs, since it inherits none of its worker, and how to add each."""

_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})"
)
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


def check_image(image: str) -> None:
    """Check that the name of an image has a tag or a digest.

    Raises:
        ValueError: It has none, so it would mean another image tomorrow, or is not a valid name.
    """
    if not _IMAGE.fullmatch(image):
        raise ValueError("expected REPOSITORY/NAME:TAG, such as registry.example.com/videos:0.1.0")


def check_assignment(text: str) -> None:
    """Check that a text assigns a value to a variable.

    Raises:
        ValueError: It is not of the form NAME=VALUE.
    """
    name, equals, _value = text.partition("=")
    if not (equals and _VARIABLE.fullmatch(name)):
        raise ValueError("expected NAME=VALUE")


def check_secret(text: str) -> None:
    """Check that a text assigns a saved block with a secret to a variable.

    Raises:
        ValueError: It is not of the form NAME=TYPE/NAME, or the type has no secret.
    """
    check_assignment(text)
    block = text.partition("=")[2]
    if not is_block_name(block) or block.partition("/")[0] not in SECRET_FIELDS:
        kinds = ", ".join(f"{kind}/NAME" for kind in SECRET_FIELDS)
        raise ValueError(f"expected NAME=BLOCK, where BLOCK is one of {kinds}")


def reference(block: str) -> str:
    """Return Prefect's reference to the secret in a block, which a worker resolves; pure."""
    kind, _, name = block.partition("/")
    return f"{{{{ prefect.blocks.{kind}.{name}{SECRET_FIELDS[kind]} }}}}"


@dataclass(frozen=True)
class JobSettings:
    """Image and environment that the command ``deploy`` was given.

    Attributes:
        image: Image of the containers, or None.
        env: Environment variables with their values.
        secrets: Environment variables with the blocks whose secrets they get.
    """

    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(
        cls, image: str | None, env: Iterable[str] = (), secrets: Iterable[str] = ()
    ) -> "JobSettings":
        """Return the settings of options of the form NAME=VALUE."""
        return cls(image, _assigned(env), _assigned(secrets))

    @property
    def environment(self) -> dict[str, str]:
        """Return all variables, those with a secret as a reference to its block."""
        return {**self.env, **{name: reference(block) for name, block in self.secrets.items()}}

    def refusal(self, pool: "WorkPool") -> tuple[str, str] | None:
        """Return why a pool cannot run deployments with these settings, and the next step."""
        again = f"prefect-cometapi deploy --pool {pool.name}"
        kind = f"the work pool {pool.name} ({pool.type})"
        if self.image and not starts_containers(pool):
            message = f"{kind} has no job variable for an image; its worker runs the flows itself"
            return message, again
        if not self.image and needs_image(pool):
            message = (
                f"{kind} starts a container for each run, and none of Prefect's images has this "
                "package"
            )
            return message, f"{again} --image REPOSITORY/NAME:TAG"
        if self.environment and "env" not in variables_of(pool):
            return (
                f"{kind} has no job variable for the environment",
                f"edit its template, or {again}",
            )
        for name, value in self.env.items():
            if is_secret(name, value):
                message = f"{name} is a secret, and Prefect would store it as readable text"
                return message, f"save it as a block, then {again} --secret {name}=secret/NAME"
        if starts_containers(pool) and (lost := lost_settings(self.env)):
            return f"{kind} starts a container for each run; {lost[0].message}", lost[0].fix
        return None

    def variables(self, pool: "WorkPool", current: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job variables of a deployment in a pool; pure.

        Secrets are references to their blocks.

        Args:
            pool: Work pool of the deployment.
            current: Its present job variables. Those that the pool does not accept are dropped, as
                they belong to the pool that it was in before.
        """
        known = variables_of(pool)
        kept = {
            name: value
            for name, value in current.items()
            if name.split(".")[0] in known or not known  # a type that the server does not know
        }
        if self.image:
            kept["image"] = self.image
        if self.environment:
            kept["env"] = {**(kept.get("env") or {}), **self.environment}
        return kept


def _assigned(texts: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def is_reference(value: str) -> bool:
    """Return whether a value is a reference that a worker resolves; pure."""
    return bool(re.fullmatch(r"\{\{.*\}\}", value.strip()))


def is_secret(name: str, value: str) -> bool:
    """Return whether the value of an environment variable is a secret; pure.

    It is one if the name says so, or if the value has a password, a signature or the like.
    """
    if not value or is_reference(value):
        return False
    return any((_SECRET_NAME.search(name), _PASSWORD.search(value), _SECRET_PART.search(value)))


def needs_image(pool: "WorkPool") -> bool:
    """Return whether a pool needs an image and brings none with this package; pure."""
    default = variables_of(pool).get("image", {}).get("default") or ""
    return starts_containers(pool) and (not default or default.startswith(PREFECT_IMAGE))


@dataclass(frozen=True)
class Problem:
    """Reason why the containers of a deployment cannot run its flow, or may not.

    Attributes:
        message: Description.
        fix: What to do about it.
        is_certain: False if the platform may add what is missing, by means unknown here.
    """

    message: str
    fix: str
    is_certain: bool = True


def container_problems(pool: "WorkPool", variables: Mapping[str, Any]) -> list[Problem]:
    """Return what the containers of a deployment lack, or lose when they end; pure.

    Args:
        pool: Work pool of the deployment.
        variables: Job variables of the deployment.
    """
    if not starts_containers(pool):
        return []
    again = f"prefect-cometapi deploy --pool {pool.name} --image REPOSITORY/NAME:TAG"
    found: list[Problem] = []
    image = str(variables.get("image") or "")
    if image.startswith(PREFECT_IMAGE) or (not image and needs_image(pool)):
        found.append(Problem("their image is one of Prefect's, without this package", again))
    environment = environment_of(pool, variables)
    found += lost_settings(environment)
    if not platform_adds(pool):
        found += [
            Problem(f"they get no {name}", f"{again} {option}", is_certain=False)
            for name, option in NEEDED.items()
            if not environment.get(name)
        ]
    return found


def platform_adds(pool: "WorkPool") -> bool:
    """Return whether a pool's template names a source of variables of its platform; pure.

    Such are ``envFrom`` of Kubernetes, and ``secrets`` and ``environmentFiles`` of ECS.
    """
    configured = json.dumps(pool.base_job_template.get("job_configuration", {}))
    return bool(re.search('"(envFrom|secrets|environmentFiles)": *[^n]', configured))


def lost_settings(env: Mapping[str, str]) -> list[Problem]:
    """Return each setting of an environment that names a file of its container; pure.

    A folder at an absolute path may be a volume, so only the run itself can judge it.
    """
    found: list[Problem] = []
    if env.get("COMETAPI_LEDGER_URL", "").startswith("sqlite"):
        found.append(local_ledger())
    storage = env.get("COMETAPI_STORAGE", "")
    path = None if is_block_name(storage) or is_reference(storage) else local_path(storage)
    if storage and path and not path.is_absolute():
        message = f"their storage {storage} is deleted with each of them"
        found.append(Problem(message, f"set {SHARED_STORAGE}"))
    return found


def local_ledger() -> Problem:
    """Return the problem of a ledger in a file of a container; pure."""
    return Problem("their ledger is a SQLite file, which is not shared", f"set {SHARED_LEDGER}")


def environment_of(pool: "WorkPool", variables: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a deployment's containers, from the pool and the deployment; pure.

    Variables that the platform adds, such as from a Kubernetes secret, are not among them.
    """
    configured = pool.base_job_template.get("job_configuration", {}).get("env")
    default = variables_of(pool).get("env", {}).get("default")
    found: dict[str, str] = {}
    for source in (configured, default, variables.get("env")):
        if isinstance(source, Mapping):
            found |= {str(name): str(value) for name, value in source.items()}
        elif isinstance(source, list):  # as Kubernetes writes it
            found |= {str(one.get("name")): str(one.get("value", "{{ }}")) for one in source}
    return found
