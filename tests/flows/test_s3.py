# SPDX-License-Identifier: Apache-2.0
"""Videos go to S3, by URL and by block: whole, streamed from the disk, and checked before."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import boto3
import pytest
from prefect_aws import AwsCredentials, S3Bucket
from prefect_aws.client_parameters import AwsClientParameters
from pydantic import SecretStr

from prefect_cometapi.flows import generate_batch, image_to_video
from prefect_cometapi.runway import StorageError, StorageUnavailable
from prefect_cometapi.runway.ledger.marks import FOLDER
from prefect_cometapi.runway.storage.base import PROBE, probe
from prefect_cometapi.runway.storage.fsspec import FsspecStorage

from ..written_results import read_results

pytestmark = [pytest.mark.server, pytest.mark.heavy]


def content(bucket, key: str) -> bytes:
    return bucket.Object(key).get()["Body"].read()


def keys(bucket) -> list[str]:
    found = sorted(one.key for one in bucket.objects.all())
    # A block cannot delete the file by which it was tested.
    return [key for key in found if f"{FOLDER}/" not in key and not key.endswith(PROBE)]


def test_a_url_takes_video_poster_and_sidecar(prefect_server, sandbox, image, bucket):
    """A URL gets video, poster and sidecar under their names, and the bytes match the hash."""
    (video,) = image_to_video(image, storage=f"s3://{bucket.name}/clips").videos
    assert video.uri.startswith(f"s3://{bucket.name}/clips/")
    names = [
        str(uri).removeprefix(f"s3://{bucket.name}/")
        for uri in (video.uri, video.poster, video.sidecar)
    ]
    assert keys(bucket) == sorted(names)
    assert hashlib.sha256(content(bucket, names[0])).hexdigest() == video.sha256
    assert json.loads(content(bucket, names[2]))["video"]["sha256"] == video.sha256


def test_a_saved_bucket_of_prefect_aws_takes_them_too(prefect_server, sandbox, image, bucket, s3):
    """A saved S3Bucket uses its own credentials and folder, and the URI is the object's own."""
    S3Bucket(
        bucket_name=bucket.name,
        bucket_folder="blocks",
        credentials=AwsCredentials(
            aws_access_key_id="AKIAEXAMPLE",
            aws_secret_access_key=SecretStr("canary-of-s3"),
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=s3),
        ),
    ).save("of-videos", overwrite=True)
    (video,) = image_to_video(image, storage="s3-bucket/of-videos").videos
    name = video.uri.removeprefix(f"s3://{bucket.name}/blocks/")
    assert hashlib.sha256(content(bucket, f"blocks/{name}")).hexdigest() == video.sha256
    assert len(keys(bucket)) == 3


def test_a_batch_leaves_its_manifest_gallery_and_posters_there(
    prefect_server, sandbox, image, bucket, history
):
    """A batch writes its manifest, gallery and posters to a bucket and shows the posters."""
    place = f"s3://{bucket.name}/batch"
    state = generate_batch(
        [dict(image, id="one"), dict(image, id="two")],
        storage=place,
        idempotency_key="s3",
        return_state=True,
    )
    result = state.result()
    assert {item.id: item.uri for item in read_results(str(result.output))} == {
        item.id: item.uri for item in result.results
    }
    assert str(result.gallery).startswith(place)
    artifacts = history.artifacts(state.state_details.flow_run_id)
    assert "The first 2 of 2" in artifacts["Posters"]["description"]


def test_a_bucket_that_is_not_there_costs_nothing_and_is_not_made(
    prefect_server, sandbox, image, bucket
):
    """A missing bucket is reported before the POST, and is not created."""
    with pytest.raises(StorageUnavailable, match="s3://no-such-bucket"):
        image_to_video(image, storage="s3://no-such-bucket/clips")
    assert sandbox.accepted == []
    everything: Any = boto3.resource("s3")
    assert "no-such-bucket" not in {one.name for one in everything.buckets.all()}


def test_a_probe_leaves_nothing_behind(bucket):
    """A probe writes, reads and deletes, leaves nothing, and reports a failure without secrets."""
    probe(FsspecStorage(f"s3://{bucket.name}/clips"))
    assert keys(bucket) == []
    with pytest.raises(StorageError) as told:
        probe(FsspecStorage("s3://no-such-bucket/clips"))
    assert "canary" not in str(told.value)


LARGE = """
import sys
from pathlib import Path
from prefect_cometapi.runway.storage.fsspec import FsspecStorage

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

place, folder = FsspecStorage(sys.argv[1]), Path(sys.argv[2])
small, large = folder / "small", folder / "large"
small.write_bytes(b"x" * 1000)
place.publish(small, "small")
with large.open("wb") as file:
    for _ in range(160):
        file.write(bytes(1 << 20))
before = peak()
place.publish(large, "large.mp4")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_video_is_streamed_from_the_disk(bucket, tmp_path):
    """A video of 160 MB is uploaded in parts, and is never in memory as a whole."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, f"s3://{bucket.name}/large", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80_000  # kB
    assert bucket.Object("large/large.mp4").content_length == 160 << 20
