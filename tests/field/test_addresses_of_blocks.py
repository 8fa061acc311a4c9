# SPDX-License-Identifier: Apache-2.0
"""Addresses and media types of what a storage block or a URL keeps."""

import hashlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import fsspec
import pytest
from PIL import Image
from prefect.blocks.core import Block
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect_aws import AwsCredentials, S3Bucket
from prefect_aws.client_parameters import AwsClientParameters
from pydantic import SecretStr

from prefect_cometapi.flows import generate_batch, image_to_video, text_to_image
from prefect_cometapi.flows.runtime import block_sources
from prefect_cometapi.flows.runtime.block_storage import block_storage
from prefect_cometapi.flows.runtime.run_context import RunContext
from prefect_cometapi.runway import ImageToVideoRequest, StorageError, TextToImageRequest
from prefect_cometapi.runway.models.sources import StoredSource
from prefect_cometapi.runway.sources.files import LocalFile
from prefect_cometapi.runway.storage.fsspec import FsspecStorage
from prefect_cometapi.runway.storage.upload_options import media_type_of_name

from ..flows.conftest import History
from ..s3 import environment

CAT = "https://example.com/cat.jpg"


class Uploads(Block):
    """Block that records its uploads, as the blocks of the object stores do."""

    _block_type_slug = "test-uploads"
    sent: list[dict[str, Any]] = []  # noqa: RUF012 -- a field of pydantic

    def upload_from_path(self, from_path: str, to_path: str, **options: Any) -> None:
        self.sent.append(options)


class OfGoogle(Uploads):
    """Fields of ``prefect_gcp.GcsBucket``, which ends each folder with a slash."""

    _block_type_slug = "gcs-bucket"
    bucket: str = "b"
    bucket_folder: str = "clips/"


class OfAzure(Uploads):
    """Fields of ``prefect_azure.AzureBlobStorageContainer``."""

    _block_type_slug = "azure-blob-storage-container"
    container_name: str = "c"
    base_folder: str | None = None


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the one class of Azure's package that is used."""
    blob = ModuleType("azure.storage.blob")
    blob.ContentSettings = SimpleNamespace  # type: ignore[attr-defined]
    for name in ("azure", "azure.storage"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "azure.storage.blob", blob)


@pytest.mark.parametrize(
    ("folder", "address"),
    [
        ("", "s3://b/a.mp4"),
        ("clips", "s3://b/clips/a.mp4"),
        ("Clips/2026/", "s3://b/Clips/2026/a.mp4"),
        ("/", "s3://b//a.mp4"),
    ],
)
def test_a_bucket_reports_the_address_of_each_object(folder, address):
    """The address has the bucket and the key that the block uploads to, in any spelling of it."""
    bucket = S3Bucket(bucket_name="b", bucket_folder=folder)
    storage: Any = block_storage(bucket, "s3-bucket/prod")
    assert storage.uri("a.mp4") == address
    assert storage.uri("a.mp4") == f"s3://b/{bucket._join_bucket_folder('a.mp4')}"
    assert storage.path_of(address) == "a.mp4"
    assert storage.path_of("s3://another/a.mp4") is None


@pytest.mark.parametrize(
    ("block", "address", "options"),
    [
        (OfGoogle(), "gs://b/clips/a.mp4", {"content_type": "video/mp4"}),
        (
            OfAzure(),
            "az://c/a.mp4",
            {"content_settings": SimpleNamespace(content_type="video/mp4"), "overwrite": True},
        ),
        (Uploads(), "test-uploads/prod/a.mp4", {}),
    ],
)
def test_the_blocks_of_other_stores_do_so_too(block, address, options, tmp_path, azure):
    """Google's and Azure's blocks have addresses and media types; any other block has its name."""
    (tmp_path / "a.mp4").write_bytes(b"video")
    block.sent.clear()
    storage = block_storage(block, f"{block.get_block_type_slug()}/prod")
    assert storage.publish(tmp_path / "a.mp4", "a.mp4") == address
    assert block.sent == [options]


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("s3", {"ContentType": "image/jpeg"}),
        ("gs", {"content_type": "image/jpeg"}),
        ("az", {"content_settings": SimpleNamespace(content_type="image/jpeg")}),
        ("abfss", {"content_settings": SimpleNamespace(content_type="image/jpeg")}),
        ("sftp", {}),
    ],
)
def test_a_url_has_the_same_media_types(scheme, options, tmp_path, monkeypatch, azure):
    """An upload by URL has its media type in the form that each file system of fsspec takes."""
    taken: dict[str, Any] = {}

    class Files:
        def put_file(self, _here: str, _there: str, **given: Any) -> None:
            taken.update(given)

        def info(self, _there: str) -> dict[str, Any]:
            return {"size": 6}

        def makedirs(self, *_given: Any, **_options: Any) -> None: ...

        def mv(self, *_given: Any) -> None: ...

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_options: (Files(), url))
    (tmp_path / "a.tmp").write_bytes(b"poster")
    FsspecStorage(f"{scheme}://b/clips").publish(tmp_path / "a.tmp", "a.jpg")
    parts = {"chunksize", "max_concurrency"}
    assert {name: value for name, value in taken.items() if name not in parts} == options


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.MOV", "video/quicktime"),
        ("a.webp", "image/webp"),
        ("batch.results.jsonl", "application/jsonl"),
        ("batch.results.jsonl.gz", "application/gzip"),
        ("batch.gallery.html", "text/html; charset=utf-8"),
        ("a.unknown", "application/octet-stream"),
    ],
)
def test_a_media_type_is_the_same_on_every_machine(name, kind):
    """The type follows from the name alone."""
    assert media_type_of_name(name) == kind


@pytest.mark.parametrize("there", [True, False])
async def test_a_stored_video_is_read_with_the_credentials_of_its_block(monkeypatch, there):
    """The address of a video in the block of the run is a source, although it has no block name."""

    class Readable(OfGoogle):
        def read_path(self, path: str) -> bytes:
            return path.encode()

    async def load(_name: str, *_given: Any) -> Any:
        if not there:
            raise StorageError("no such block")
        return Readable()

    monkeypatch.setattr("prefect_cometapi.flows.runtime.block_storage.load_block", load)
    opened: list[str] = []

    def by_address(address: str) -> LocalFile:
        opened.append(address)
        return LocalFile(Path(__file__), address)

    monkeypatch.setattr(block_sources, "open_file", by_address)
    context = RunContext(None, "gcs-bucket/prod")
    file = await block_sources.open_source(StoredSource("gs://b/clips/a.mp4"), context)
    if there:
        await block_sources.open_source(StoredSource("gs://another/a.mp4"), context)
        assert (file.read(100), opened) == (b"a.mp4", ["gs://another/a.mp4"])
    else:
        assert opened == ["gs://b/clips/a.mp4"]


def addresses_in_events(server: str, run: Any) -> tuple[str, str]:
    """Return the address in the event of a stored video, and the key of its asset."""
    asset = "prefect.asset.materialization.succeeded"
    events = {one["event"]: one for one in History(server).events(run, asset)}
    stored = events["cometapi.generation.stored"]["payload"]["uri"]
    return stored, events[asset]["resource"]["prefect.resource.id"]


@pytest.mark.server
@pytest.mark.heavy
def test_the_blocks_of_prefect_itself_report_addresses(prefect_server, sandbox, tmp_path):
    """A LocalFileSystem and a RemoteFileSystem report addresses, in the events, too."""
    LocalFileSystem(basepath=str(tmp_path / "block")).save("addressed", overwrite=True)
    RemoteFileSystem(basepath="memory://addressed").save("addressed", overwrite=True)
    for slug, start in (("local", str(tmp_path / "block")), ("remote", "memory://addressed")):
        state: Any = image_to_video(
            ImageToVideoRequest(prompt_image=CAT),
            storage=f"{slug}-file-system/addressed",
            return_state=True,
        )
        (video,) = state.result().videos
        assert all(uri.startswith(f"{start}/") for uri in (video.uri, video.poster, video.sidecar))
        files, path = fsspec.core.url_to_fs(video.uri)
        assert hashlib.sha256(files.cat_file(path)).hexdigest() == video.sha256
        uri, asset = addresses_in_events(prefect_server, state.state_details.flow_run_id)
        assert uri == video.uri
        assert asset.lower().removeprefix("file://") == video.uri.lower()


@pytest.fixture
def bucket(s3: str, prefect_server: str) -> Any:
    """Create a bucket that only a saved block leads to."""
    env = environment(s3)
    client: Any = boto3.resource(
        "s3",
        endpoint_url=s3,
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    made = client.Bucket("addressed")
    made.create()
    S3Bucket(
        bucket_name="addressed",
        bucket_folder="Clips",
        credentials=AwsCredentials(
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SecretStr(env["AWS_SECRET_ACCESS_KEY"]),
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=s3),
        ),
    ).save("addressed", overwrite=True)
    return made


@pytest.mark.heavy
@pytest.mark.server
def test_a_bucket_serves_its_types(bucket, sandbox, monkeypatch, prefect_server, s3):
    """In a real bucket, each object has its media type, and its address is in result and events."""
    block = "s3-bucket/addressed"
    image = io.BytesIO()
    Image.new("RGB", (512, 512)).save(image, "JPEG")
    bucket.put_object(Key="Clips/ref.jpg", Body=image.getvalue())
    picture = TextToImageRequest(
        prompt_text="@cat in oil",
        ratio="1280:720",
        reference_images=[{"uri": "s3://addressed/Clips/ref.jpg", "tag": "cat"}],  # type: ignore[list-item]
    )
    (still,) = text_to_image(picture, storage=block).videos
    # The bucket's keys are in the block alone, so this source is read with them.
    request = ImageToVideoRequest(prompt_image=still.uri, model="gen4_turbo", ratio="1280:720")
    state: Any = image_to_video(request, storage=block, return_state=True)
    (clip,) = state.result().videos
    batch = generate_batch([ImageToVideoRequest(prompt_image=CAT)], storage=block)
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    direct = image_to_video(ImageToVideoRequest(prompt_image=CAT), storage="s3://addressed/direct")
    kinds = {
        still.uri: still.media_type,
        clip.uri: "video/mp4",
        clip.poster: "image/jpeg",
        clip.sidecar: "application/json",
        batch.output: "application/jsonl",
        batch.gallery: "text/html; charset=utf-8",
        direct.videos[0].uri: "video/mp4",
        direct.videos[0].poster: "image/jpeg",
        direct.videos[0].sidecar: "application/json",
    }
    for uri, kind in kinds.items():
        key = str(uri).removeprefix("s3://addressed/")
        assert bucket.Object(key).content_type == kind, uri
    sidecar = bucket.Object(str(clip.sidecar).removeprefix("s3://addressed/")).get()["Body"].read()
    assert json.loads(sidecar)["video"]["uri"] == clip.uri
    uri, asset = addresses_in_events(prefect_server, state.state_details.flow_run_id)
    assert uri == clip.uri
    assert asset.lower() == clip.uri.lower()
