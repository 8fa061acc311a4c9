# SPDX-License-Identifier: Apache-2.0
"""Pictures in a private bucket: small ones go as bytes, large ones as a presigned URL."""

import base64
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from prefect_aws import AwsCredentials, S3Bucket
from prefect_aws.client_parameters import AwsClientParameters
from pydantic import SecretStr

from prefect_cometapi.flows import image_to_video, video_to_video
from prefect_cometapi.runway import GenerationResult, IdempotencyKeyConflict, SourceUnavailable
from prefect_cometapi.sandbox.config import ACCESS_TOKEN

from ..pictures import noise, picture
from ..s3 import KEY_ID, SECRET
from .test_examples import example

pytestmark = [pytest.mark.server, pytest.mark.heavy]


def pictured(source: str) -> Any:
    """Return a request as a dict, which a flow takes too."""
    return {"promptImage": source}


def restyled(result: GenerationResult) -> Any:
    """Return a request whose source is the video of a result."""
    return {"videoUri": result.videos[0].uri, "promptText": "snow"}


@pytest.fixture
def block(bucket, s3) -> str:
    """Save an S3Bucket with a folder of its own, and return its name."""
    S3Bucket(
        bucket_name=bucket.name,
        bucket_folder="blocks",
        credentials=AwsCredentials(
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SecretStr(SECRET),
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=s3),
        ),
    ).save("of-pictures", overwrite=True)
    return "s3-bucket/of-pictures"


def test_a_small_picture_goes_as_a_data_uri(prefect_server, sandbox, bucket, ledger_probe):
    """The bytes are those of the object; another object under the same key is a conflict."""
    bucket.put_object(Key="pics/cat.png", Body=picture())
    request = pictured(f"s3://{bucket.name}/pics/cat.png")
    first = image_to_video(request, idempotency_key="sku")
    data = base64.b64encode(picture()).decode()
    assert sandbox.accepted[0].body["promptImage"] == f"data:image/png;base64,{data}"
    bucket.put_object(Key="pics/cat.png", Body=picture(), ContentType="image/png")
    assert image_to_video(request, idempotency_key="sku").task_id == first.task_id
    bucket.put_object(Key="pics/cat.png", Body=picture("JPEG"))
    with pytest.raises(IdempotencyKeyConflict, match="sources was"):
        image_to_video(request, idempotency_key="sku")
    assert len(sandbox.accepted) == 1


@pytest.mark.parametrize("by_block", [False, True])
def test_a_large_picture_goes_as_a_presigned_url(
    prefect_server, sandbox, bucket, ledger_probe, block, by_block
):
    """Anyone can fetch it for an hour, with the type of its content; the ledger has its ETag."""
    content = noise(5_200_000)
    bucket.put_object(Key="blocks/large", Body=content)
    address = f"{block}/large" if by_block else f"s3://{bucket.name}/blocks/large"
    video = image_to_video(pictured(address), idempotency_key="sku").videos[0]
    url = sandbox.accepted[0].body["promptImage"]
    query = parse_qs(urlsplit(url).query)
    assert "X-Amz-Signature" in query or "Signature" in query
    reply = httpx.get(url)
    assert reply.content == content
    assert reply.headers["content-type"] == "image/png"
    etag = bucket.Object("blocks/large").e_tag.strip('"')
    assert ledger_probe["sku"].source_versions == pictured(f"etag:{etag}")
    assert "Signature" not in ledger_probe["sku"].model_dump_json()
    assert image_to_video(pictured(address), idempotency_key="sku").videos[0] == video
    bucket.put_object(Key="blocks/large", Body=noise(5_100_000))
    with pytest.raises(IdempotencyKeyConflict, match=etag):
        image_to_video(pictured(address), idempotency_key="sku")
    assert len(sandbox.accepted) == 1


def test_a_video_in_a_block_is_the_source_of_the_next_flow(
    prefect_server, sandbox, bucket, block, image
):
    """The address of a video that a block stored leads to the video, in any storage."""
    bucket.put_object(Key="blocks/cat.png", Body=picture())
    first = image_to_video(pictured(f"{block}/cat.png"), storage=block)
    assert first.videos[0].uri.startswith(f"s3://{bucket.name}/blocks/")
    video_to_video(restyled(first))
    assert sandbox.accepted[1].body["videoUri"].startswith("data:video/mp4;base64,")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("s3://{bucket}/missing.png", "it does not exist"),
        ("s3://no-such-bucket-of-ours/cat.png", "it does not exist"),
        ("{block}/missing.png", "Not Found"),
    ],
)
def test_a_missing_object_costs_nothing(
    prefect_server, sandbox, bucket, block, ledger_probe, address, why
):
    """The message names the address, and no credentials."""
    place = address.format(bucket=bucket.name, block=block)
    with pytest.raises(SourceUnavailable) as caught:
        image_to_video(pictured(place), idempotency_key="sku")
    assert place in str(caught.value)
    assert why in str(caught.value)
    assert SECRET not in str(caught.value)
    assert sandbox.requests == []
    assert ledger_probe.all() == []


def test_a_short_film_is_made_from_a_picture_in_a_bucket(
    bucket, prefect_server, sandbox, monkeypatch, tmp_path
):
    """Three routes in one flow read what the one before stored, and each result has its cost."""
    monkeypatch.setenv("COMETAPI_PRICES", "catalogue")
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", ACCESS_TOKEN)
    bucket.put_object(Key="cat.png", Body=picture("PNG", 320, 320))
    film = example("short_film").short_film
    made = film(f"s3://{bucket.name}/cat.png", f"s3://{bucket.name}/films")
    assert [result.videos[0].is_picture for result in made] == [True, False, False]
    assert all(result.videos[0].uri.startswith(f"s3://{bucket.name}/films/") for result in made)
    assert [result.cost_source for result in made] == ["billed"] * 3
    assert all(result.cost for result in made)
    assert len(sandbox.accepted) == 3
