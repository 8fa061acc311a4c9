# SPDX-License-Identifier: Apache-2.0
"""Settings come from the environment or a .env file, and invalid ones are refused at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway import CometAPISettings
from prefect_cometapi.runway.settings import check_base_url

HOSTS = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,5}){1,2}(:[1-9][0-9]{0,3})?", fullmatch=True)


def test_everything_but_the_key_has_a_default():
    """The API key is the only setting without a default."""
    settings = CometAPISettings()
    assert settings.key is None
    assert settings.base_url == "https://api.cometapi.com"
    assert settings.runway_version == "2024-11-06"
    assert (settings.poll_interval, settings.generation_timeout) == (5.0, 1800.0)
    assert settings.not_found_grace == 120.0


def test_the_environment_is_read_whenever_settings_are_made(monkeypatch):
    """A run reads the environment at its start, not at the time of the import."""
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "60")
    assert CometAPISettings().generation_timeout == 60
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", "90")
    assert CometAPISettings().generation_timeout == 90


def test_a_dotenv_file_is_read_and_the_environment_wins(monkeypatch, tmp_path):
    """Environment variables take precedence over a .env file, as usual."""
    (tmp_path / ".env").write_text("COMETAPI_KEY=sk-from-file\nCOMETAPI_STORAGE=/a\nOTHER=1\n")
    monkeypatch.setenv("COMETAPI_STORAGE", "/b")
    settings = CometAPISettings()
    assert settings.key is not None
    assert settings.key.get_secret_value() == "sk-from-file"
    assert settings.storage == "/b"


ELSEWHERE = "COMETAPI_BASE_URL=https://example.com\n"


@pytest.mark.parametrize("in_file", ["", "COMETAPI_KEY=sk-from-file\n"])
def test_a_dotenv_file_has_no_key_of_somebody_else_sent_away(monkeypatch, tmp_path, in_file):
    """An untrusted .env file may not redirect an API key that comes from the environment."""
    (tmp_path / ".env").write_text(ELSEWHERE + in_file)
    monkeypatch.setenv("COMETAPI_KEY", "sk-from-the-environment")
    with pytest.raises(
        ValidationError, match="set COMETAPI_BASE_URL where COMETAPI_KEY is set"
    ) as caught:
        CometAPISettings()
    assert "sk-from" not in str(caught.value)


def test_a_dotenv_file_has_no_access_token_of_somebody_else_sent_away(monkeypatch, tmp_path):
    """An untrusted .env file may not redirect an access token of the environment either."""
    (tmp_path / ".env").write_text(f"{ELSEWHERE}COMETAPI_KEY=sk-from-file\n")
    monkeypatch.setenv("COMETAPI_ACCESS_TOKEN", "at-from-the-environment")
    with pytest.raises(ValidationError, match="only if COMETAPI_ACCESS_TOKEN comes from the same"):
        CometAPISettings()


def test_a_service_is_named_where_its_key_is(monkeypatch, tmp_path):
    """Key and base URL come from the same source, or the base URL is a sandbox on this machine."""
    (tmp_path / ".env").write_text(ELSEWHERE + "COMETAPI_KEY=sk-from-file\n")
    assert CometAPISettings().base_url == "https://example.com"
    monkeypatch.setenv("COMETAPI_KEY", "sk-from-the-environment")
    monkeypatch.setenv("COMETAPI_BASE_URL", "https://example.org")
    assert CometAPISettings().base_url == "https://example.org"
    monkeypatch.delenv("COMETAPI_BASE_URL")
    (tmp_path / ".env").write_text("COMETAPI_BASE_URL=http://127.0.0.1:8765\n")
    assert CometAPISettings().base_url == "http://127.0.0.1:8765"


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    """`COMETAPI_BASE_URL=` in a compose file means the default."""
    monkeypatch.setenv("COMETAPI_BASE_URL", "")
    assert CometAPISettings().base_url == "https://api.cometapi.com"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POLL_INTERVAL", "0"),
        ("POLL_INTERVAL", "301"),
        ("GENERATION_TIMEOUT", "0"),
        ("NOT_FOUND_GRACE", "-1"),
        ("BASE_URL", "api.cometapi.com"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(monkeypatch, name, value):
    """An invalid value is refused by the name of its setting, before anything is bought."""
    monkeypatch.setenv(f"COMETAPI_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        CometAPISettings()


def test_settings_never_show_the_key(monkeypatch, api_key):
    """The API key is hidden when settings are printed and when another one is invalid."""
    monkeypatch.setenv("COMETAPI_KEY", api_key)
    assert api_key not in f"{CometAPISettings()!r} {CometAPISettings().model_dump_json()}"
    monkeypatch.setenv("COMETAPI_GENERATION_TIMEOUT", api_key)
    with pytest.raises(ValidationError) as caught:
        CometAPISettings()
    assert api_key not in str(caught.value)


@given(host=HOSTS, slash=st.sampled_from(["", "/", " "]))
def test_any_https_root_is_accepted_without_its_slash(host, slash):
    """A company's own gateway may replace CometAPI."""
    assert check_base_url(f"https://{host}{slash}") == f"https://{host}"


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
def test_the_path_that_other_tools_of_cometapi_set_is_dropped(path):
    """One COMETAPI_BASE_URL serves them and this package."""
    assert check_base_url(f"https://api.cometapi.com{path}") == "https://api.cometapi.com"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8765", "http://localhost", "http://[::1]:1/"])
def test_the_sandbox_on_this_machine_needs_no_https(url):
    """Plain http is allowed on this machine, where nobody can intercept it."""
    assert check_base_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://api.cometapi.com", "must be https"),
        ("http://127.0.0.1.example.com", "must be https"),
        ("ftp://api.cometapi.com", "must be https"),
        ("https://api.cometapi.com/v2", "leave out the path '/v2'"),
        ("https://api.cometapi.com/runway/v1", "leave out the path '/runway/v1'"),
        ("https://", "must be the root URL of the service, for example https://api.cometapi.com"),
        ("api.cometapi.com", "must be the root URL of the service"),
        ("https://user:password@api.cometapi.com", "must be the root URL of the service"),
        ("https://:password@api.cometapi.com", "must be the root URL of the service"),
        ("https://api.cometapi.com?x=1", "must be the root URL of the service"),
        ("https://api.cometapi.com#x", "must be the root URL of the service"),
        ("https://api.cometapi.com:port", "must be the root URL of the service"),
        ("https://api.comet api.com", "must be the root URL of the service"),
        ("https://[::1", "must be the root URL of the service"),
    ],
)
def test_a_wrong_base_url_is_refused_with_what_to_write(url, hint):
    """The API key is sent to the base URL, so the URL is checked before it is used."""
    with pytest.raises(ValueError, match=hint.replace("?", r"\?")) as caught:
        check_base_url(url)
    assert "password" not in str(caught.value)
