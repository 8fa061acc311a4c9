# SPDX-License-Identifier: Apache-2.0
"""Storages of the matrix: a folder, a URL of an object store, and a storage block."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import boto3

from prefect_cometapi.runway.ledger.marks import FOLDER
from prefect_cometapi.runway.storage.base import PROBE

from ...s3 import environment, s3_server
from ..harness.collect_state import HIDDEN

BUCKET = "videos"


class Location(Protocol):
    """Location of the videos of one case."""

    @property
    def address(self) -> str:
        """Return the location as a flow gets it, and as the ledger records it."""
        ...

    def names(self) -> list[str]:
        """Return the names of all visible files."""
        ...

    def local(self, name: str) -> Path:
        """Return a visible file as a file on this machine."""
        ...

    def uri(self, name: str) -> str:
        """Return the URI of a file."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path

    @property
    def address(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        if not self.path.exists():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.name not in HIDDEN)

    def local(self, name: str) -> Path:
        return self.path / name

    def uri(self, name: str) -> str:
        return str(self.path / name)


@dataclass(frozen=True)
class Objects:
    """Objects below a prefix of a bucket, possibly with a block for it."""

    store: "ObjectStore"
    address: str
    prefix: str
    copies: Path

    def names(self) -> list[str]:
        listed = self.store.client.list_objects_v2(Bucket=BUCKET, Prefix=self.prefix)
        names = (each["Key"].removeprefix(self.prefix) for each in listed.get("Contents", []))
        return sorted(name for name in names if not name.startswith((f"{FOLDER}/", PROBE)))

    def local(self, name: str) -> Path:
        self.copies.mkdir(exist_ok=True)
        self.store.client.download_file(BUCKET, self.prefix + name, str(self.copies / name))
        return self.copies / name

    def uri(self, name: str) -> str:
        return f"s3://{BUCKET}/{self.prefix}{name}"


@dataclass(frozen=True)
class ObjectStore:
    """Real S3 server with one bucket."""

    url: str

    @cached_property
    def client(self) -> Any:
        env = environment(self.url)
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        )

    def at_url(self, case: str, copies: Path) -> Objects:
        """Return the location of a case that uses a URL."""
        return Objects(self, f"s3://{BUCKET}/{case}", f"{case}/", copies)

    def by_block(self, case: str, copies: Path) -> Objects:
        """Return the location of a case that uses a block of its own."""
        return Objects(self, f"s3-bucket/{case}", f"{case}/", copies)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start a server with an empty bucket."""
    with s3_server() as url:
        store = ObjectStore(url)
        store.client.create_bucket(Bucket=BUCKET)
        yield store


def save_block(url: str, case: str) -> None:
    """Save the block of a case in the Prefect server of this process."""
    from prefect_aws import AwsCredentials, S3Bucket
    from prefect_aws.client_parameters import AwsClientParameters
    from pydantic import SecretStr

    env = environment(url)
    S3Bucket(
        bucket_name=BUCKET,
        bucket_folder=case,
        credentials=AwsCredentials(
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SecretStr(env["AWS_SECRET_ACCESS_KEY"]),
            region_name=env["AWS_DEFAULT_REGION"],
            aws_client_parameters=AwsClientParameters(endpoint_url=url),
        ),
    ).save(case, overwrite=True)
