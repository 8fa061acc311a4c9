# SPDX-License-Identifier: Apache-2.0
"""No output contains a token, an API key or a picture."""

import ipaddress
import logging
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_cometapi.runway.media.download import HTTPCORE_LOGGERS
from prefect_cometapi.runway.redact import (
    hide_secrets,
    host_of,
    is_loopback,
    is_redacted,
    origin_of,
    redact_source,
    redact_url,
    scrub,
)

MARK = "TOPSECRETMARK"
IN_QUERY = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/?%[]|", max_size=30)
HOSTS = st.sampled_from(["example.com", "[::1]:8080", "127.0.0.1:80", "a.b.example"])
PATHS = st.sampled_from(["", "/", "/video.mp4", "/a/b(1)/c"])
BASE64 = st.text(string.ascii_letters + string.digits + "+/-_=", max_size=40)
AROUND = st.sampled_from(["", "see ", '{"error":"', "('", "<", "[", "url=", "A"])
PIECES = st.lists(
    st.sampled_from(
        [
            "https://h/p?x=1",
            "http://u:p@h",
            "https://h/p?",
            "https://h#f",
            "bearer ",
            'bearer \\"',
            "Bearer",
            "sk-abcdefgh",
            "data:image/png;base64,",
            "AAAA",
            "<sha256:0123456789ab>",
            "<hidden>",
            "<hidden key>",
            "\n",
            " ",
            ",",
            ">",
            "…",
            "x" * 90,
        ]
    )
    | st.text(max_size=10),
    max_size=12,
).map("".join)


@given(before=AROUND, host=HOSTS, path=PATHS, start=IN_QUERY, mark=st.sampled_from("?#"))
@example(before="", host="h", path="/p", start="a=b\\u0026sig=", mark="?")
@example(before="", host="h", path="/p#part=", start="", mark="?")
def test_no_query_or_fragment_of_a_url_is_repeated(before, host, path, start, mark):
    """The query of a signed URL is a token and is hidden, whatever legal characters it has."""
    for scheme in ("https", "HTTP", "s3"):
        url = f"{scheme}://{host}{path}{mark}{start}{MARK}"
        assert MARK not in scrub(f"{before}{url} and more")
        assert MARK not in redact_url(url)


def test_a_url_with_escaped_slashes_is_recognised():
    """Some services escape the slashes of a URL in their JSON."""
    assert MARK not in scrub(rf"https:\/\/h\/p?token={MARK}")


@pytest.mark.parametrize("scheme", ["https", "ftp", "sftp"])
def test_a_password_in_a_url_is_hidden(scheme):
    """The password of a URL is hidden for every protocol."""
    assert scrub(f"{scheme}://me:{MARK}@h/x.mp4") == f"{scheme}://h/x.mp4"
    assert scrub(f"https://proxy/{scheme}://me:{MARK}@h/x") == f"https://proxy/{scheme}://h/x"


@given(payload=BASE64, before=AROUND, head=st.sampled_from(["image/png;base64", ";base64", ""]))
@example(payload=r"AAAA\/AAAA", before="", head="image/png;base64")
def test_no_payload_of_a_data_uri_is_repeated(payload, before, head):
    """A data URI is hidden in logs, whatever case its scheme is written in."""
    for scheme in ("data", "DATA"):
        uri = f"{scheme}:{head},{payload}{MARK}"
        assert MARK not in scrub(f"{before}{uri} was refused")
        assert MARK not in redact_source(uri)


@pytest.mark.parametrize(
    "words",
    [
        f"Authorization: Bearer {MARK}",
        f'"authorization": "bearer  {MARK}"',
        f"Bearer '{MARK}'",
        f"Bearer bearer {MARK}",
        f"Bearer bearer '{MARK}'",
        rf'{{"error": "bearer \"{MARK}\""}}',
        rf'"{{\"error\": \"Bearer \\\"{MARK}\\\"\"}}"',
        f"https://h/p?authorization=Bearer {MARK}",
        f"data:text/plain;base64,Bearer {MARK}",
    ],
)
def test_no_bearer_token_is_repeated(words):
    """A bearer token is hidden, even where a service quotes the header."""
    assert MARK not in scrub(words)


@given(start=st.text(string.ascii_letters + string.digits + "_-", max_size=40))
def test_no_api_key_is_repeated(start):
    """An API key is recognised by its prefix anywhere in a text."""
    for before in ("", "key ", "key=", "(", "x_"):
        assert MARK not in scrub(f"{before}sk-{start}{MARK} is invalid")


def test_words_that_only_contain_the_beginning_of_a_key_stay():
    """A word such as "task" is not taken for an API key."""
    assert scrub("task-12345678 at risk-assessment") == "task-12345678 at risk-assessment"


@given(text=PIECES, limit=st.integers(20, 120))
@example(text="x" * 92 + "bearer secret and more", limit=107)
def test_what_was_made_safe_stays_as_it_is(text, limit):
    """Text may be redacted several times, which gives the same result as once."""
    once = scrub(text, limit)
    assert scrub(once, limit) == once


@given(text=st.text(max_size=300), limit=st.integers(1, 100))
def test_untrusted_words_become_one_short_line(text, limit):
    """A reply cannot flood a log or break its lines."""
    shown = scrub(text, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1


def test_an_ordinary_message_is_repeated_word_by_word():
    """A message without secrets is shown unchanged."""
    message = "model gen9 is not available (see https://docs.example/models), try gen4!"
    assert scrub(message) == message


def test_two_signed_urls_of_one_file_can_be_told_apart():
    """The hash of a hidden token is shown, so that logs can be compared."""
    one, other = redact_url("https://h/a.mp4?t=1"), redact_url("https://h/a.mp4?t=2")
    assert one != other
    assert one.startswith("https://h/a.mp4?<sha256:")
    assert is_redacted(one)
    assert not is_redacted("https://h/a.mp4")
    assert redact_url("https://h/a.mp4?") == "https://h/a.mp4?"


def test_a_shown_data_uri_tells_type_and_size():
    """A hidden data URI shows its type and size, so that it can be recognised."""
    assert redact_source("data:image/png;base64,AAAA").endswith(", 4 characters>")
    assert redact_source("data:image/png;base64,AAAA").startswith("data:image/png;base64,<sha256:")
    assert redact_source("https://h/cat.jpg") == "https://h/cat.jpg"


@given(text=st.text(max_size=60))
def test_looking_for_the_host_of_anything_never_fails(text):
    """Addresses are untrusted, so reading the host of any text does not fail."""
    assert host_of(text) == host_of(text).lower()
    assert is_loopback(text) in {True, False}


@given(address=st.ip_addresses())
def test_this_machine_is_recognised_by_its_addresses(address):
    """Plain http is allowed only for this machine."""
    host = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address)
    assert is_loopback(f"http://{host}:80/x") == address.is_loopback


@pytest.mark.parametrize("host", ["127.999.1.1", "127.0.0.1.example.com", "", "localhost.example"])
def test_names_that_look_like_this_machine_are_not(host):
    """A registered name that resembles a local one leads to another machine."""
    assert not is_loopback(f"http://{host}/")


def test_urls_without_a_host_have_none():
    """The host of a URL without one is an empty string, not an error."""
    assert host_of("https://[bad") == ""
    assert host_of("no url") == ""
    assert host_of("HTTPS://Example.COM:443/x") == "example.com"
    assert is_loopback("http://LOCALHOST:1")


ENDLESS = ["a", "?a", "%3F", "%3D", "http:", "://a@", "data:a", "base64,", "bearer ", 'bearer \\"']


@pytest.mark.parametrize("begun", ["", "?", "bearer ", "http://"])
@pytest.mark.parametrize("again", ENDLESS)
@pytest.mark.heavy
def test_ten_times_the_text_takes_ten_times_the_time(begun, again):
    """The search for secrets takes linear time, whatever untrusted text it reads."""
    few, many = (_seconds_to_hide(begun + again * (size // len(again))) for size in (10**4, 10**5))
    assert many < 40 * few + 0.01


def _seconds_to_hide(text):
    """Return the least CPU seconds of three measurements, since other processes disturb them."""
    took = []
    for _ in range(3):
        begun = time.process_time()
        hide_secrets(f"{text},")
        took.append(time.process_time() - begun)
    return min(took)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://H.example/x?y", "https://h.example:443"),
        ("HTTP://h.example:80/", "http://h.example:80"),
        ("http://[::1]:8777/x", "http://::1:8777"),
        ("https://h.example:99999/", ""),
        ("https://[bad", ""),
        ("https:///x", ""),
        ("ftp://h.example/", ""),
    ],
)
def test_an_origin_tells_a_service_from_its_neighbours(url, origin):
    """An origin is scheme, host and port; a URL without these belongs to no service."""
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "told",
    [
        "GET /img.png?X-Amz-Signature=canary gave 403",
        "cdn.x/a.png?sig=canary",
        "https%3A%2F%2Fcdn.x%2Fa.png%3Fsig%3Dcanary",
        "a.png?x=1&sig=canary,",
    ],
)
def test_a_signature_is_hidden_without_the_rest_of_its_url(told):
    """A signature is hidden in the errors of servers that quote a URL partly."""
    assert "canary" not in hide_secrets(told)
    assert hide_secrets(hide_secrets(told)) == hide_secrets(told)


def test_a_question_is_no_query():
    """A question mark in ordinary text does not start a query."""
    assert hide_secrets("Why? a=b is fine; who? me") == "Why? a=b is fine; who? me"


@given(st.text())
def test_what_is_shown_can_be_printed(text):
    """No escape sequence in untrusted text reaches a terminal."""
    assert scrub(text).isprintable()


@pytest.mark.parametrize("name", HTTPCORE_LOGGERS)
def test_headers_in_the_log_of_httpcore_are_cleaned(name, caplog):
    """At DEBUG, httpcore logs the target of a redirect, and its signature is hidden."""
    with caplog.at_level("DEBUG", logger=f"httpcore.{name}"):
        header = (b"Location", b"https://cdn/x?X-Amz-Signature=canary")
        logging.getLogger(f"httpcore.{name}").debug("headers.complete return_value=%r", header)
    assert "canary" not in caplog.text
    assert "https://cdn/x" in caplog.text
