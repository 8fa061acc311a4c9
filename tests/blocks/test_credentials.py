# SPDX-License-Identifier: Apache-2.0
"""The credentials block appears in the UI, validates its fields and never shows its API key."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.blocks.core import Block
from pydantic import SecretStr, ValidationError

from prefect_cometapi import blocks
from prefect_cometapi.blocks import CometAPICredentials
from prefect_cometapi.runway import AuthenticationError, CometAPISettings, ImageToVideoRequest

from ..block_suite import OfflineBlockSuite

KEY = "sk-canary5c0ffee5c0ffee"
ALL = [getattr(blocks, name) for name in blocks.__all__]


@pytest.mark.parametrize("block", ALL, ids=blocks.__all__)
class TestEveryBlock(OfflineBlockSuite):
    """Prefect's standard tests for every block of this integration."""


@pytest.mark.parametrize("block", ALL, ids=blocks.__all__)
def test_logo_and_documentation_are_addresses_that_a_browser_loads(block):
    """Logo and documentation have https addresses, so a UI served over https can load them."""
    assert str(block._logo_url).startswith("https://")
    assert str(block._documentation_url).startswith("https://")


@pytest.mark.parametrize("block", ALL, ids=blocks.__all__)
def test_each_field_of_the_form_has_a_title_of_its_own(block):
    """Each field of the form in the UI has a readable title instead of a variable name."""
    for name, field in block.model_fields.items():
        assert field.title, name


@pytest.mark.parametrize("block", ALL, ids=blocks.__all__)
def test_a_block_is_found_by_the_slug_that_users_type(block):
    """The slug in `cometapi-credentials/prod` does not change."""
    slugs = {"CometAPICredentials": "cometapi-credentials", "GenerationLedger": "generation-ledger"}
    slug = block.get_block_type_slug()
    assert slug == slugs[block.__name__]
    assert Block.get_block_class_from_key(slug) is block


@pytest.fixture(scope="module")
def saved(prefect_server) -> Iterator[CometAPICredentials]:
    """Save a block on a real server."""
    block = CometAPICredentials(
        api_key=SecretStr(KEY), runway_version="2024-11-06", base_url="https://api.example.com"
    )
    block.save("credentials-test", overwrite=True)
    yield block
    CometAPICredentials.delete("credentials-test")


@pytest.mark.server
def test_what_was_saved_is_what_is_loaded(saved):
    """A block that is saved and loaded again is equal, API key included."""
    loaded: Any = CometAPICredentials.load("credentials-test")
    assert loaded.api_key.get_secret_value() == KEY
    assert loaded.base_url == "https://api.example.com"
    assert loaded.runway_version == "2024-11-06"


@pytest.mark.server
async def test_a_block_is_loaded_by_its_type_and_name(saved):
    """`cometapi-credentials/NAME` is enough to load the block in an async flow."""
    loaded = await Block.aload("cometapi-credentials/credentials-test")
    assert isinstance(loaded, CometAPICredentials)
    assert loaded.api_key.get_secret_value() == KEY


@pytest.mark.server
@pytest.mark.parametrize("form", ["block", "fields", "reference by id", "reference by name"])
async def test_a_flow_takes_the_block_in_every_form_that_prefect_has(saved, form):
    """A flow accepts the block in Python, as JSON, and as the reference that the UI stores."""
    given = {
        "block": saved,
        "fields": {"api_key": KEY, "base_url": "https://api.example.com"},
        "reference by id": {"$ref": {"block_document_id": str(saved._block_document_id)}},
        "reference by name": {
            "$ref": {"block_document_slug": "cometapi-credentials/credentials-test"}
        },
    }[form]

    @flow
    async def takes(credentials: CometAPICredentials) -> tuple[str, str]:
        return credentials.api_key.get_secret_value(), credentials.base_url

    assert await takes(given) == (KEY, "https://api.example.com")


@pytest.mark.server
def test_the_server_masks_the_api_key_unless_secrets_are_requested(saved, prefect_server):
    """The API masks the API key with asterisks unless secrets are requested."""
    address = f"{prefect_server}/block_documents/{saved._block_document_id}"
    shown = httpx.get(address).raise_for_status()
    assert shown.json()["data"]["api_key"] == "*" * 8
    assert KEY not in shown.text
    asked = httpx.get(address, params={"include_secrets": True}).raise_for_status()
    assert asked.json()["data"]["api_key"] == KEY


@pytest.mark.server
async def test_a_run_does_not_record_the_key_of_its_block(saved, prefect_server):
    """The parameters of a flow run, which everybody may read, do not contain the API key."""

    @flow(name="records-credentials")
    async def takes(credentials: CometAPICredentials) -> None: ...

    await takes(saved)
    query = {"flows": {"name": {"any_": ["records-credentials"]}}}
    async with httpx.AsyncClient() as http:
        runs = await http.post(f"{prefect_server}/flow_runs/filter", json=query)
    assert len(runs.json()) == 1
    assert "credentials" in runs.json()[0]["parameters"]
    assert KEY not in runs.text


@pytest.mark.parametrize("show", [repr, str, "{}".format, CometAPICredentials.model_dump_json])
def test_a_block_never_prints_its_key(show):
    """A block that is printed, formatted or dumped as JSON masks its API key."""
    shown = show(CometAPICredentials(api_key=SecretStr(KEY)))
    assert KEY not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": KEY, "base_url": "nonsense"},
        {"api_key": f"{KEY} {KEY}"},
        {"api_key": KEY, "apikey": KEY},
        {"key": KEY},
    ],
)
def test_a_refusal_does_not_repeat_the_key(fields):
    """The message of a validation error may be logged, so it does not contain the API key."""
    with pytest.raises(ValidationError) as caught:
        CometAPICredentials.model_validate(fields)
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value)


@pytest.mark.parametrize("name", ["key", "url", "baseurl", "runwayVersion"])
def test_a_misspelt_field_is_refused(name):
    """An unknown field is an error and is not silently ignored."""
    with pytest.raises(ValidationError, match=rf"(?s){name}.*Extra inputs are not permitted"):
        CometAPICredentials.model_validate({"api_key": KEY, name: "x"})


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("https://api.cometapi.com/v2", "leave out the path '/v2'"),
        ("https://api.cometapi.com/runwayml/v1/", "start at https://api.cometapi.com"),
        ("http://api.cometapi.com", "must be https://"),
        ("ftp://api.cometapi.com", "must be https://"),
        (
            "https://user:pw@api.cometapi.com",
            "must be the root URL of the service, for example https://api.cometapi",
        ),
        (
            "https://api.cometapi.com?x=1",
            "must be the root URL of the service, for example https://api.cometapi.com",
        ),
        (
            "api.cometapi.com",
            "must be the root URL of the service, for example https://api.cometapi.com",
        ),
        ("", "must be the root URL of the service, for example https://api.cometapi.com"),
        (
            "https://api.cometapi.com:port",
            "must be the root URL of the service, for example https://api.cometapi.com",
        ),
    ],
)
def test_a_base_url_that_leads_elsewhere_is_refused_with_what_to_write(url, advice):
    """The API key is sent only to the root of a service over https."""
    with pytest.raises(ValidationError) as caught:
        CometAPICredentials(api_key=SecretStr(KEY), base_url=url)
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("base_url",)
    assert advice in problem["msg"]


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://api.cometapi.com/", "https://api.cometapi.com"),
        (" https://api.cometapi.com ", "https://api.cometapi.com"),
        ("http://127.0.0.1:8777", "http://127.0.0.1:8777"),
        ("http://localhost:8777/", "http://localhost:8777"),
    ],
)
def test_a_base_url_is_read_as_the_root_that_it_means(url, root):
    """A trailing slash or space is harmless, and this machine needs no https."""
    assert CometAPICredentials(api_key=SecretStr(KEY), base_url=url).base_url == root


@pytest.mark.parametrize("key", ["", "   ", "\n", "sk-ключ", "sk-a b", "sk-a\x00b", "“sk-a”"])
def test_what_can_be_no_key_is_refused_at_once(key):
    """An empty API key, or one with an invalid character, is refused before it is sent."""
    with pytest.raises(ValidationError, match=r"the API key (is empty|has )"):
        CometAPICredentials(api_key=SecretStr(key))


def test_space_around_a_key_is_dropped():
    """An API key that was copied with its line break works."""
    block = CometAPICredentials(api_key=SecretStr(f" {KEY}\n"))
    assert block.api_key.get_secret_value() == KEY


def test_a_key_is_required():
    """A block needs an API key."""
    with pytest.raises(ValidationError, match=r"(?s)key.*Field required"):
        CometAPICredentials.model_validate({})


def test_settings_make_credentials(monkeypatch):
    """COMETAPI_* environment variables can replace each field of a block."""
    monkeypatch.setenv("COMETAPI_KEY", KEY)
    monkeypatch.setenv("COMETAPI_BASE_URL", "https://eu.example.com")
    monkeypatch.setenv("COMETAPI_RUNWAY_VERSION", "2025-01-01")
    block = CometAPICredentials.from_settings()
    assert block.api_key.get_secret_value() == KEY
    assert block.base_url == "https://eu.example.com"
    assert block.runway_version == "2025-01-01"


@pytest.mark.parametrize("key", [None, SecretStr(""), SecretStr("  ")])
def test_settings_without_a_key_say_where_to_get_one(key):
    """Without an API key, the error says where to get and set one, and that it cost nothing."""
    with pytest.raises(AuthenticationError) as caught:
        CometAPICredentials.from_settings(CometAPISettings(key=key))
    message = str(caught.value)
    assert "there is no API key" in message
    assert "set COMETAPI_KEY" in message
    assert "https://www.cometapi.com/console/token" in message
    assert "nothing was charged" in message


async def test_the_client_sends_the_key_and_the_version(sandbox):
    """Each call of a block's client carries the API key as bearer token, and the Runway version."""
    block = CometAPICredentials(
        api_key=SecretStr(KEY), base_url=sandbox.url, runway_version="2025-02-03"
    )
    request = ImageToVideoRequest(prompt_image="https://example.com/cat.jpg")
    async with block.get_client() as client:
        task_id = await client.create(request)
        await client.get(task_id)
    assert [sent.method for sent in sandbox.requests] == ["POST", "GET"]
    for sent in sandbox.requests:
        assert sent.headers["authorization"] == f"Bearer {KEY}"
        assert sent.headers["x-runway-version"] == "2025-02-03"


async def test_the_client_sends_through_the_transport_that_it_is_given():
    """A proxy or a test can pass in its own transport."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=json.dumps({"id": "abc"}))

    block = CometAPICredentials(api_key=SecretStr(KEY))
    async with block.get_client(httpx.MockTransport(answer)) as client:
        made = await client.create(ImageToVideoRequest(prompt_image="https://example.com/a.jpg"))
    assert made == "abc"
    assert [sent.url.host for sent in seen] == ["api.cometapi.com"]


TOKEN = "at-canary5c0ffee5c0ffee"


@pytest.mark.parametrize("show", [repr, str, "{}".format, CometAPICredentials.model_dump_json])
def test_a_block_never_prints_its_access_token(show):
    """The access token is masked like the API key."""
    block = CometAPICredentials(api_key=SecretStr(KEY), access_token=SecretStr(f" {TOKEN}\n"))
    assert TOKEN not in show(block)
    assert block.access_token
    assert block.access_token.get_secret_value() == TOKEN


@pytest.mark.parametrize("token", [None, SecretStr(""), SecretStr("  ")])
def test_an_access_token_is_optional(token):
    """An empty field of the form is no access token."""
    assert CometAPICredentials(api_key=SecretStr(KEY), access_token=token).access_token is None


@pytest.mark.parametrize(
    ("token", "reason"),
    [("********", "masked access token"), ("at-1 2", "has a blank or a line break in it")],
)
def test_what_can_be_no_access_token_is_refused(token, reason):
    """The refusal does not repeat the token."""
    with pytest.raises(ValidationError, match=reason) as caught:
        CometAPICredentials(api_key=SecretStr(KEY), access_token=SecretStr(token))
    assert token not in str(caught.value)


async def test_the_access_token_goes_to_the_lists_and_the_key_to_the_rest(sandbox, monkeypatch):
    """The clients of a block send each secret to its own routes only, and none to the catalogue."""
    monkeypatch.setenv("COMETAPI_KEY", KEY)
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", "sandbox-access-token")
    monkeypatch.setenv("COMETAPI_BASE_URL", sandbox.url)
    block = CometAPICredentials.from_settings()
    async with block.get_account() as account, block.get_client() as client:
        assert (await account.check_token()).is_accepted
        assert (await account.balance()).usd is not None
        await client.get("task-1")
    assert (await block.get_catalogue().models()).is_complete
    sent = {request.route: request.headers.get("authorization") for request in sandbox.requests}
    assert sent == {
        "tasks": "Bearer sandbox-access-token",
        "billing": f"Bearer {KEY}",
        "task": f"Bearer {KEY}",
        "models": None,
    }


def test_a_masked_key_is_no_key():
    """A masked API key is refused with advice and is never sent."""
    with pytest.raises(ValidationError, match="a masked API key; load the saved block again"):
        CometAPICredentials(api_key=SecretStr("**********"))
