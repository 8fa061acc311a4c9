# SPDX-License-Identifier: Apache-2.0
"""Each way to write a source is accepted or refused by its form, before anything is read."""

import base64
import copy
import json
import pickle
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from prefect_cometapi.runway import ImageToVideoRequest, Reference, VideoToVideoRequest
from prefect_cometapi.runway.models.sources import (
    Source,
    StoredSource,
    split_block_path,
    stored_sources,
    with_sources,
)

STORED = [
    "cat.png",
    "./pics/cat.png",
    "~/cat.png",
    "/data/My cats/cat (1).png",
    "C:\\pics\\cat.png",
    "file:///data/cat.png",
    "s3://bucket/pics/cat.png",
    "gs://bucket/cat.png",
    "az://container/cat.png",
    "memory://pics/cat.png",
    "s3-bucket/prod/pics/cat.png",
]


def image(source: Any) -> ImageToVideoRequest:
    return ImageToVideoRequest(prompt_image=source)


@pytest.mark.parametrize("address", STORED)
def test_an_address_that_is_read_later_is_kept_as_it_is_written(address):
    """The request has the address and the kind of the source, also after each kind of copy."""
    request = VideoToVideoRequest(
        video_uri=address, prompt_text="rain", references=[Reference(uri=address)]
    )
    read = ImageToVideoRequest.model_validate_json(image(address).model_dump_json(by_alias=True))
    for one in (image(address), read, pickle.loads(pickle.dumps(read)), copy.deepcopy(read)):
        assert one.stored_sources() == {"promptImage": address}
        assert one.stored_sources()["promptImage"].kind == "image"
    assert request.stored_sources() == {"videoUri": address, "references[0].uri": address}
    assert request.stored_sources()["videoUri"].kind == "video"


def test_a_field_beside_a_source_may_name_its_kind():
    """The kind is that of the field ``type``, where the source's own field does not name it."""

    class Performance(BaseModel):
        type: Literal["image", "video"]
        uri: Source

    for kind in ("image", "video"):
        performance = Performance(type=kind, uri="s3://bucket/act")
        assert isinstance(performance.uri, StoredSource)
        assert performance.uri.kind == kind


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "must not be empty"),
        (" cat.png", "begin or end with a blank"),
        ("a\nb.png", "no control characters"),
        ("x" * 4097, "at most 4096 characters"),
        ("s3://user:s3cr3t@bucket/cat.png", "must not contain a password"),
        ("s3://bucket/cat.png?X-Amz-Signature=s3cr3t", "must not contain a password, a query"),
        ("s3://bucket/cat.png#s3cr3t", "a fragment"),
        ("simplecache::s3://bucket/cat.png", "must be an https:// URL"),
        ("s3://bucket/zip::cat.png", "a chain of file systems"),
        ("s3://bucket", "must name a file"),
        ("s3://bucket/pics/", "must name a file"),
        ("htps://example.com/cat.png", "must be an https:// URL"),
        ("sftp://host/cat.png", "must be an https:// URL"),
        ("runway:upload", "must be an https:// URL"),
        ("https://93.184.216.34/cat.png", "must be a name, because Runway refuses 93.184.216.34"),
        ("https://[2606:2800:220:1::1]/cat.png", "must be a name"),
        ("data:image/gif;base64,AAAA", "it is image/gif, but Runway takes only JPEG, PNG and WebP"),
        (
            f"data:image/png;base64,{base64.b64encode(b'GIF89a...').decode()}",
            "it is image/gif, but Runway takes only JPEG, PNG and WebP",
        ),
    ],
)
def test_a_source_that_can_neither_be_sent_nor_read_is_refused(address, problem):
    """A wrong form is an error of the field, and no secret in it is repeated."""
    with pytest.raises(ValidationError, match="prompt_image") as caught:
        image(address)
    assert problem in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_this_machine_may_be_written_as_an_address():
    """A sandbox on this machine is reached by its IP address."""
    assert image("https://127.0.0.1:8443/cat.png").stored_sources() == {}


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("s3-bucket/prod/pics/cat.png", ("s3-bucket/prod", "pics/cat.png")),
        ("local-file-system/my pics/cat.png", ("local-file-system/my pics", "cat.png")),
        ("pics/cat.png", None),
        ("./pics/in/cat.png", None),
        ("/pics/in/cat.png", None),
        ("s3://bucket/pics/cat.png", None),
    ],
)
def test_a_file_in_a_block_is_written_as_the_block_and_a_path(address, parts):
    """The notation is that of the location of a stored video in a block."""
    assert split_block_path(address) == parts


versions = st.dictionaries(st.sampled_from(["promptImage", "x"]), st.text(min_size=1), min_size=1)


@given(one=versions, other=versions)
def test_the_fingerprint_tells_apart_what_was_at_an_address(one, other):
    """Another version of a source is another request, and no version is the address alone."""
    request = image("s3://bucket/cat.png")
    assert (request.fingerprint(one) == request.fingerprint(other)) == (one == other)
    assert request.fingerprint(one) != request.fingerprint()
    assert request.fingerprint({}) == request.fingerprint(None) == request.fingerprint()


def test_the_fingerprints_of_stored_sources_are_the_same_in_every_process():
    """A fingerprint is stored in a database, so no version of this package may change it."""
    request = image("s3://bucket/cat.png")
    assert (request.fingerprint()[:12], request.fingerprint({"promptImage": "etag:1"})[:12]) == (
        "19a08262f749",
        "49fc45df69c0",
    )


def test_the_versions_are_shown_with_the_request():
    """The ledger and the sidecar tell which content was sent."""
    shown = image("s3://bucket/cat.png").redacted({"promptImage": "etag:1"})
    assert shown["promptImage"] == "s3://bucket/cat.png"
    assert shown["sources"] == {"promptImage": "etag:1"}


body = st.recursive(
    st.text() | st.integers() | st.builds(StoredSource, st.sampled_from(["a.png", "s3://b/c"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["uri", "a"]), inner)
    ),
)


@given(body=st.dictionaries(st.sampled_from(["promptImage", "references", "b"]), body))
def test_every_stored_source_of_a_body_is_found_and_replaced(body):
    """Nothing but the sources changes, wherever they are in the body."""
    found = dict(stored_sources(body))
    sent = with_sources(body, {path: f"<{path}>" for path in found})
    assert not dict(stored_sources(sent))
    text = json.dumps(sent)
    assert all(f"<{path}>" in text for path in found)
    assert with_sources(body, found) == body
