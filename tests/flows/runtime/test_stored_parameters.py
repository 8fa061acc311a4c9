# SPDX-License-Identifier: Apache-2.0
"""Parameters of runs are stored as Prefect stores them, without its slow conversion."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import Flow

from prefect_cometapi.flows import aimage_to_video
from prefect_cometapi.runway import ImageToVideoRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab<c"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
)
FULL = {"prompt_text": "zoom", "seed": 7, "duration": 5, "extra": {"a": [1, None]}}


@given(value=JSON)
def test_plain_parameters_are_stored_as_prefect_stores_them(value):
    """A plain value is stored as it is, which is what Prefect would store."""
    parameters = {"request": value, "wait": True, "storage": None}
    assert aimage_to_video.serialize_parameters(parameters) == Flow.serialize_parameters(
        aimage_to_video, parameters
    )


@pytest.mark.parametrize("fields", [{}, FULL])
def test_a_request_is_stored_as_prefect_stores_it(fields):
    """A request is stored with the names of the API, which is what Prefect would store."""
    request = ImageToVideoRequest.model_validate(
        {"prompt_image": "https://example.com/cat.jpg", **fields}
    )
    parameters = {"request": request, "variation": 2}
    assert aimage_to_video.serialize_parameters(parameters) == Flow.serialize_parameters(
        aimage_to_video, parameters
    )


def test_other_parameters_are_converted_by_prefect():
    """A parameter that is not JSON is left to Prefect."""
    stored = aimage_to_video.serialize_parameters({"request": {"a": {2}}, "storage": object()})
    assert stored == {"request": {"a": [2]}, "storage": "<object>"}


def test_the_parameters_of_a_request_are_stored_without_fastapi():
    """Storing a request does not import FastAPI, which would delay the first submission."""
    code = (
        "import sys\n"
        "from prefect_cometapi import ImageToVideoRequest, image_to_video\n"
        "request = ImageToVideoRequest(prompt_image='https://example.com/cat.jpg')\n"
        "image_to_video.serialize_parameters({'request': request, 'storage': None})\n"
        "sys.exit('fastapi' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
