# SPDX-License-Identifier: Apache-2.0
"""Keys of Prefect assets for sources and videos."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.assets import Asset

from prefect_cometapi.flows.runtime.assets import asset_key, source_keys
from prefect_cometapi.runway import ImageToVideoRequest, VideoToVideoRequest

SECRET = "canary"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("https://Example.com/Cat.jpg?X-Amz-Signature=canary", "https://example.com/Cat.jpg"),
        ("https://user:canary@example.com/cat.jpg#canary", "https://example.com/cat.jpg"),
        ("https://example.com/my%20cat.jpg", "https://example.com/my_20cat.jpg"),
        ("https://example.com/sk-canary17/cat.jpg", "https://example.com/_hidden_key_/cat.jpg"),
        ("s3://Bucket/Cat.PNG", "s3://Bucket/Cat.PNG"),
        ("s3://bucket/date=2026-11-29/a.mp4", "s3://bucket/date=2026-11-29/a.mp4"),
        ("/videos/My Films/a.mp4", "file:///videos/My_Films/a.mp4"),
        ("file:///videos/My%20Films/a.mp4", "file:///videos/My_Films/a.mp4"),
        ("s3-bucket/mine/cat.png", "block://s3-bucket/mine/cat.png"),
        ("data:image/png;base64,canary", "inline://image/png/e100fbce008c"),
        (
            "data:image/png;base64,<sha256:0123456789ab, 6 characters>",
            "inline://image/png/0123456789ab",
        ),
        ("./cat.png", None),
        ("simplecache::s3://bucket/cat.png", "s3://bucket/cat.png"),
        ("https://[broken", None),
        ("", None),
    ],
)
def test_an_asset_key_is_an_address_without_secrets(address, key):
    """A key has no signature, no user info and no picture, and Prefect accepts it."""
    assert asset_key(address) == key
    assert key is None or Asset(key=key).key == key


@given(
    st.sampled_from(["", "https://", "s3://", "/", "data:image/png;base64,", "s3-bucket/x/"]),
    st.text(max_size=700),
    st.sampled_from(["?", "#"]),
)
def test_every_key_is_one_that_prefect_accepts(start, rest, mark):
    """No address gives a key that Prefect refuses, or a key with the query of a URL."""
    key = asset_key(f"{start}{rest}{mark}X-Signature=canary" if "://" in start else start + rest)
    assert key is None or Asset(key=key).key == key
    assert key is None or SECRET not in key


def test_every_source_of_a_request_has_a_key():
    """Images, videos and references are sources, each once; a prompt that is a URL is none."""
    positioned = ImageToVideoRequest.model_validate(
        {
            "model": "other",
            "promptImage": [
                {"uri": "https://example.com/first.png?sig=canary", "position": "first"},
                {"uri": "cats/last.png", "position": "last"},
            ],
            "promptText": "https://example.com/prompt",
        }
    )
    first = "https://example.com/first.png"
    assert source_keys(positioned.redacted(), "/work") == [first, "file:///work/cats/last.png"]
    assert source_keys(positioned.redacted({"promptImage[1].uri": "sha256"})) == [first]
    restyled = VideoToVideoRequest.model_validate(
        {
            "videoUri": "s3://bucket/a.mp4",
            "promptText": "night",
            "model": "other",
            "references": [{"uri": "s3://bucket/a.mp4"}, {"uri": "/b.png"}],
        }
    )
    assert source_keys(restyled.redacted()) == ["s3://bucket/a.mp4", "file:///b.png"]
