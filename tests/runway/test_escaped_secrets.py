# SPDX-License-Identifier: Apache-2.0
"""A secret is hidden in every form that a service may repeat: escaped, encoded, wrapped, cut."""

import base64
import html
import json
import logging
import string
import time
from collections.abc import Callable
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_cometapi.runway.escapes import WRAP, peel
from prefect_cometapi.runway.redact import (
    RedactingFilter,
    hide_secrets,
    redact_payload,
    redact_url,
    scrub,
)

CANARY = "c4n4ryS1gn4tureValue"
PLAIN = {
    "aws": f"https://b.s3.amazonaws.com/o.mp4?X-Amz-Date=20261121T0930Z&X-Amz-Signature={CANARY}",
    "gcs": f"https://storage.googleapis.com/b/o?X-Goog-Date=1&X-Goog-Signature={CANARY}",
    "azure": f"https://a.blob.core.windows.net/c/o?sv=2024&se=2026-11-21&sp=r&sig={CANARY}%3D",
    "cloudfront": f"https://d1.cloudfront.net/o?Policy=eyJ&Signature={CANARY}__&Key-Pair-Id=K1",
    "runway": f"https://dnznrvs05pmza.cloudfront.net/o.mp4?_jwt={CANARY}",
    "unknown name": f"https://cdn.example.com/o.mp4?q={CANARY}",
    "first of many": f"https://cdn.example.com/o.mp4?q={CANARY}&x=1",
    "fragment": f"https://cdn.example.com/o.mp4#access_token={CANARY}",
    "user info": f"https://me:{CANARY}@cdn.example.com/o.mp4",
    "port": f"https://cdn.example.com:8443/o.mp4?sig={CANARY}",
    "in a query": f"https://proxy.example.com/?url={quote(f'https://cdn/o?sig={CANARY}', safe='')}",
    "in a path": f"https://proxy.example.com/{quote(f'https://cdn/o?sig={CANARY}', safe='')}/o.mp4",
    "in a path, plain": f"https://proxy.example.com/https://cdn.example.com/o?sig={CANARY}",
    "no scheme": f"cdn.example.com/o.mp4?X-Amz-Date=1&X-Amz-Signature={CANARY}",
    "no scheme but slashes": f"//cdn.example.com/o.mp4?q={CANARY}",
    "no host": f"/o.mp4?q={CANARY}",
    "query alone": f"X-Amz-Date=1&X-Amz-Expires=60&X-Amz-Signature={CANARY}",
    "query of unknown names": f"a=1&b={CANARY}",
    "azure's alone": f"se=2026-11-21&sp=r&sv=2024&sr=b&sig={CANARY}",
    "rest of a query": f"&q={CANARY}",
    "token in a path": f"https://cdn.example.com/hdnts=exp=1~acl=*~hmac={CANARY}/o.mp4",
    "data uri": f"data:image/png;base64,{CANARY}",
}
NAMES = ["X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature"]
NAMES += ["Signature", "sig", "_jwt", "Policy", "Key-Pair-Id", "token", "access_token", "hdnea"]
NAMES += ["AWSAccessKeyId", "x-oss-signature", "password", "client_secret", "api_key"]
PLAIN |= {f"{name} alone": f"{name}={CANARY}" for name in NAMES}

OTHER_FORMS = {
    "header": f"X-Amz-Signature: {CANARY}",
    "long value after a colon": f"signature: {CANARY}",
    "JSON": f'{{"sig": "{CANARY}"}}',
    "JSON in JSON": json.dumps(json.dumps({"Signature": CANARY})),
    "dict": f"{{'X-Amz-Signature': '{CANARY}'}}",
    "pair of bytes": f"(b'X-Amz-Signature', b'{CANARY}')",
    "hash rocket": f"'sig' => '{CANARY}'",
    "quoted": f'Signature="{CANARY}"',
    "blanks around": f"X-Amz-Signature = {CANARY}",
    "XML of a storage": f"<SignatureProvided>{CANARY}</SignatureProvided>",
    "value in the next line": f"X-Amz-Signature=\n{CANARY}",
    "JWT": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.{CANARY}",
    "quoted-printable": f"https://cdn/o.mp4?sig=3D{CANARY}",
    "utf-7 of escape()": f"https%u003A%u002F%u002Fcdn%u003Fsig%u003D{CANARY}",
    "ruby": rf"https://cdn/o\u{{3f}}sig\u{{3d}}{CANARY}",
    "octal": rf"https://cdn/o\077sig\075{CANARY}",
    "entities without an end": f"https://cdn/o&#63sig&#61{CANARY}",
}


def percent(text: str) -> str:
    return quote(text, safe="")


def percent_lower(text: str) -> str:
    return "".join(s if s.isalnum() else f"%{ord(s):02x}" for s in text)


def percent_all(text: str) -> str:
    return "".join(f"%{ord(sign):02X}" for sign in text)


def as_json(text: str) -> str:
    return json.dumps(text)[1:-1].replace("/", "\\/")


def as_json_unicode(text: str) -> str:
    return "".join(s if s.isalnum() else f"\\u{ord(s):04x}" for s in text)


def backslashed_hex(text: str) -> str:
    return "".join(s if s.isalnum() else f"\\x{ord(s):02x}" for s in text)


def as_html(text: str) -> str:
    return html.escape(text).replace("=", "&#61;").replace("?", "&#x3f;")


def as_html_named(text: str) -> str:
    named = {"&": "&amp;", "=": "&equals;", "?": "&quest;", "/": "&sol;", ":": "&colon;"}
    return "".join(named.get(sign, sign) for sign in text)


def backslashed(text: str) -> str:
    return "".join(s if s.isalnum() else f"\\{s}" for s in text)


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def url_safe_base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def in_hex(text: str) -> str:
    return text.encode().hex()


def of_any_case(text: str) -> str:
    return text if CANARY not in text else CANARY.join(map(str.swapcase, text.split(CANARY)))


ESCAPES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "percent": percent,
    "percent, lower case": percent_lower,
    "percent, every sign": percent_all,
    "JSON": as_json,
    "JSON, unicode": as_json_unicode,
    "hexadecimal escapes": backslashed_hex,
    "HTML": as_html,
    "HTML, named": as_html_named,
    "backslashes": backslashed,
    "base64": in_base64,
    "base64 for URLs": url_safe_base64,
    "hexadecimal": in_hex,
    "mixed case": of_any_case,
}
FRAMES = {
    "alone": "{}",
    "prose": "the source {} could not be fetched (request id: 7)",
    "JSON": '{{"error": {{"message": "bad source {}", "code": "x"}}}}',
    "no blank before": "url={}",
    "single quotes": "cannot read '{}': 403",
    "XML": "<Message>{}</Message>",
    "brackets": "({})",
}


def undone(text: str) -> str:
    """Return the text without its escapes, as the standard library decodes them."""
    for _ in range(4):
        text = unquote(html.unescape(text))
        for sign in "/:?=&._-%;#~@*,+":
            text = text.replace(f"\\u{ord(sign):04x}", sign).replace(f"\\x{ord(sign):02x}", sign)
        text = text.replace("\\", "")
    return text


def survives(told: str) -> bool:
    return any(CANARY.lower() in text.lower() for text in (told, undone(told)))


escapes = st.sampled_from(list(ESCAPES))


@given(
    plain=st.sampled_from(list(PLAIN)),
    one=escapes,
    other=escapes,
    frame=st.sampled_from(list(FRAMES)),
)
def test_no_escaping_lets_a_signature_through(plain, one, other, frame):
    """A signature is hidden under any two escapes and in any context."""
    text = FRAMES[frame].format(ESCAPES[other](ESCAPES[one](PLAIN[plain])))
    assert not survives(scrub(text))
    assert not survives(hide_secrets(text))


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.heavy
def test_each_form_of_a_signature_is_hidden_in_each_escape(plain):
    """Every form of a signature is hidden in every pair of escapes."""
    through = [
        (one, other)
        for one, escape in ESCAPES.items()
        for other, again in ESCAPES.items()
        if survives(scrub(f"source {again(escape(PLAIN[plain]))} refused"))
    ]
    assert not through


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_signature_is_hidden_by_its_name(form):
    """A signature is hidden without any URL, in headers, JSON, XML and logs."""
    assert not survives(hide_secrets(OTHER_FORMS[form]))
    assert not survives(scrub(OTHER_FORMS[form]))


@pytest.mark.parametrize("wrap", ["\n", "\r\n", "\\n", "%0A", "%0D%0A", "&#10;", "\\\n", "\\u000a"])
@given(at=st.integers(1, len(CANARY) - 1), plain=st.sampled_from(list(PLAIN)))
@example(at=5, plain="no scheme")
def test_neither_half_of_a_wrapped_signature_is_shown(wrap, at, plain):
    """Some services wrap long lines; both parts of a wrapped token are hidden."""
    first, second = CANARY[:at], CANARY[at:]
    if "user info" in plain:  # recognised by the text after it
        return
    told = scrub(f"bad {PLAIN[plain].replace(CANARY, f'{first}{wrap}{second}')} there")
    assert second not in told or len(second) < 4
    assert first not in told or len(first) < 4


def test_the_next_line_is_shown_where_nothing_was_cut():
    """Text on another line, indented or after a blank one, is not part of a URL."""
    told = hide_secrets("at https://h/x?q=1\n\nDuring the handling\nat https://h/y?q=2\n  raise it")
    assert "During the handling" in told
    assert told.endswith("\n  raise it")
    assert told.count("https://h/") == 2


@pytest.mark.parametrize(
    "text",
    [
        "model gen9 is not available (see https://docs.example/models), try gen4!",
        "Generation 3d957031-9a2a-45e2-9dc7-bc8513059c50 is running, 45 %",
        r"C:\new\users\100% of 50%25 &amp; more",
        "a token is missing; the signature: invalid. Policy: none",
        f"sha256 {'ab12' * 16} of /home/me/videos/2026/november/clip-17.mp4",
        "prompt: a sign that says x = y, a design=flat, 3 > 2",
        "COMETAPI_STORAGE=./videos COMETAPI_GENERATION_TIMEOUT=1800",
        "aGVsbG8gd29ybGQsIHRoaXMgaXMgZmluZQ==",
    ],
)
def test_what_is_no_secret_is_repeated_as_it_is(text):
    """Escapes that hide nothing stay, and so do words that only resemble a secret's name."""
    assert hide_secrets(text) == text


@given(st.text(st.sampled_from(string.printable + WRAP + "é�")) | st.text())
def test_what_was_hidden_stays_hidden(text):
    """Redacting any text twice gives the same result as redacting it once."""
    once = hide_secrets(text)
    assert hide_secrets(once) == once


@given(st.text(st.sampled_from("%25\\&#;amp3dx6u0aA=?/")))
def test_no_escape_becomes_a_control_character(text):
    """Redacted text contains no control characters, however the input is escaped."""
    peeled = peel(text)
    assert all(sign in text or sign == WRAP or sign.isprintable() for sign in peeled)


def test_what_is_wrapped_too_deep_is_hidden_as_a_whole():
    """Text with too many layers of escapes is hidden completely, since it may hide a secret."""
    text = f"https://cdn/o?sig={CANARY}"
    for _ in range(12):
        text = percent(text)
    assert hide_secrets(f"bad {text} there") == "bad <hidden> there"


ENDLESS = ["%25", "\\", "&amp;", "%", "&", "sig=", "a=1&", "&a=", "x-", "signature", "a=b,", "eyJ"]
ENDLESS += ["?a=\n", "\n", "YWFh", "6161", "sig: ", "'sig'", "data:", "a/", "://", "token>", "&#61"]


@pytest.mark.parametrize("again", ENDLESS)
@pytest.mark.parametrize(
    "begun",
    [
        "",
        *(
            pytest.param(text, marks=pytest.mark.heavy)
            for text in ["sig", "https://h/?", "&#", "x-"]
        ),
    ],
)
@pytest.mark.heavy
def test_the_time_grows_with_the_text_alone(begun, again):
    """The search for secrets takes linear time, whatever a service writes."""
    few, many = (_seconds(begun + again * (size // len(again))) for size in (10**4, 10**5))
    assert many < 40 * few + 0.01


def _seconds(text: str) -> float:
    took = []
    for _ in range(3):
        begun = time.process_time()
        hide_secrets(f"{text},")
        took.append(time.process_time() - begun)
    return min(took)


@pytest.mark.parametrize("plain", PLAIN)
def test_a_record_of_a_log_shows_no_signature(plain, caplog):
    """A signature appears neither in a log record's message nor in its arguments or traceback."""
    logger = logging.getLogger("of a library")
    hide = RedactingFilter()
    logger.addFilter(hide)
    try:
        raise ValueError(percent(PLAIN[plain]))
    except ValueError:
        logger.exception("cannot fetch %s", as_json_unicode(PLAIN[plain]))
    finally:
        logger.removeFilter(hide)
    assert not survives(caplog.text)


@pytest.mark.parametrize("plain", PLAIN)
def test_what_is_stored_shows_no_signature(plain):
    """Prompts and other text of a request are stored without signatures."""
    told = f"{redact_payload({'a': [f'slow zoom {PLAIN[plain]}', PLAIN[plain]]})}"
    assert not survives(told)
    assert not survives(redact_url(PLAIN[plain]))
    assert redact_payload(redact_payload(PLAIN[plain])) == redact_payload(PLAIN[plain])
