# SPDX-License-Identifier: Apache-2.0
"""A sandbox signs its outputs by C2PA on request, so that users can rehearse."""

import io
import json
import sys

import c2pa
import httpx
import pytest
from pydantic import ValidationError

from prefect_cometapi.sandbox import SandboxConfig
from prefect_cometapi.sandbox.clips.content_credentials import SIGNER, SOURCE_TYPE, with_manifest

from ...pictures import picture


def test_an_output_is_signed_on_request(talk, photo_uri):
    """The library verifies the output of a job, which names the sandbox as its signer."""
    conversation = talk(c2pa=True)
    output = conversation.output(conversation.finished(promptImage=photo_uri))
    content = httpx.get(output).content
    assert httpx.get(output, headers={"Range": "bytes=0-9"}).content == content[:10]
    with c2pa.Reader("video/mp4", io.BytesIO(content)) as reader:
        assert reader.get_validation_state() == "Valid"
        found = json.loads(reader.json())
    active = found["manifests"][found["active_manifest"]]
    assert active["signature_info"]["issuer"] == SIGNER
    assert SOURCE_TYPE in json.dumps(active["assertions"])


def test_a_picture_is_signed_too():
    """The PNG of a text-to-image job can carry a manifest."""
    with c2pa.Reader("image/png", io.BytesIO(with_manifest(picture("PNG")))) as reader:
        assert reader.get_validation_state() == "Valid"


def test_without_the_extra_it_is_named(monkeypatch):
    """A sandbox that cannot sign refuses to start, and does not deliver unsigned files."""
    monkeypatch.setitem(sys.modules, "c2pa", None)
    monkeypatch.setattr(
        "prefect_cometapi.sandbox.config.is_available", lambda: sys.modules["c2pa"] is not None
    )
    with pytest.raises(ValidationError, match=r"pip install 'prefect-cometapi\[c2pa\]'"):
        SandboxConfig(c2pa=True)
    assert SandboxConfig().c2pa is False
