# SPDX-License-Identifier: Apache-2.0
"""Signed addresses that have expired: each is asked once, and a fresh one brings the film."""

import pytest
from starlette.responses import HTMLResponse, Response

from prefect_cometapi.flows import aimage_to_video
from prefect_cometapi.runway import ImageToVideoRequest
from prefect_cometapi.sandbox.api import app
from prefect_cometapi.sandbox.clips.serving import Signer
from prefect_cometapi.sandbox.faults.responses import expired

pytestmark = pytest.mark.server
REQUEST = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg", duration=5)


@pytest.fixture
def refuse(sandbox, monkeypatch):
    """Return a function that makes the store refuse the first addresses, and lists all asked."""

    def refuse_first(count: int, answer: Response) -> list[str]:
        asked: list[str] = []

        def accepts(_signer: Signer, _name: str, token: str) -> bool:
            asked.append(token)
            return token not in list(dict.fromkeys(asked))[:count]

        monkeypatch.setattr(Signer, "accepts", accepts)
        monkeypatch.setattr(app, "expired", lambda: answer)
        return asked

    return refuse_first


@pytest.mark.parametrize("status", [400, 403])
async def test_an_address_that_s3_calls_expired_is_renewed(prefect_server, refuse, status):
    """A video waited in a queue until its address had expired; the run asks for a fresh one."""
    asked = refuse(1, expired(status))
    assert (await aimage_to_video(REQUEST)).videos
    assert len(asked) == len(set(asked)) == 2


async def test_no_dead_address_is_asked_twice(prefect_server, refuse):
    """A store refused three addresses in a row; the attempts of the step repeat none of them."""
    asked = refuse(3, expired(400))
    assert (await aimage_to_video(REQUEST)).videos
    assert len(asked) == len(set(asked)) == 4


async def test_a_page_in_place_of_the_film_is_worth_a_fresh_address(prefect_server, refuse):
    """A store says in a page with status 200 that the link has expired."""
    asked = refuse(1, HTMLResponse("<html>This link has expired.</html>"))
    assert (await aimage_to_video(REQUEST)).videos
    assert len(asked) == len(set(asked)) == 2
