# SPDX-License-Identifier: Apache-2.0
"""Redaction of secrets in texts, URLs and JSON values.

The query of a signed URL is an access token, a data URI is a private picture, and a service may
repeat either in an error message. Every text that leaves this package (log, error, artifact,
result, sidecar) goes through one of these functions first.
"""

import hashlib
import ipaddress
import logging
import re
from typing import Any
from urllib.parse import urlsplit

from .escapes import WRAP, peel
from .signatures import without_signature

HIDDEN = "<sha256:"
"""Start of the mark that replaces a secret; a URL with this mark no longer works."""

_REDACTED = re.compile(rf"{HIDDEN}[0-9a-f]{{12}}(?:, [0-9]+ characters)?>\Z")

# When in doubt, redact more. A secret ends only at whitespace, a quote or an angle bracket. It
# continues in the next line if that line starts without a blank, since services wrap long lines.
_END = r"\s\"'<>"
_NEXT_LINE = rf"(?:\r?\n|{WRAP}{{1,2}})(?![a-z][a-z0-9+.-]{{0,20}}://)"
_REST = rf"[^{_END}]+(?:{_NEXT_LINE}[^{_END}]+)*"
_QUOTE = r"(?:\\*[\"'])"
_URL = re.compile(
    rf"[a-z][a-z0-9+.-]{{0,20}}:(?:\\?/){{2}}[^\s\"<>?#]+"
    rf"(?:[?#][^\s\"<>]*(?:{_NEXT_LINE}[^{_END}]+)*)?",
    re.IGNORECASE,
)
_DATA_URI = re.compile(
    rf"data:(?:[\w.+-]{{1,60}}\\?/[\w.+-]{{1,60}})?(?:;[^{_END},]{{0,100}})?,{_REST}", re.IGNORECASE
)
_BASE64 = re.compile(rf"(base64,){_REST}", re.IGNORECASE)
# An error message may contain only the end of a URL ("GET /a.png?sig=…"), or of its query.
_QUERY = re.compile(rf"\?([^{_END}?=]*={_REST})", re.IGNORECASE)
_PAIRS = re.compile(
    rf"(?:(?<![^{_END}(\[{{])&|(?<![^{_END}])[^{_END}?=&]{{1,80}}=[^{_END}&]*&)"
    rf"[^{_END}=]{{1,80}}={_REST}",
    re.IGNORECASE,
)
_NAME = (
    r"(?:signature|credential|secret|passw(?:or)?d|jwt|hmac|token|policy|key[_-]?pair[_-]?id"
    r"|(?:access|api|auth|account|signing)[_-]?key|hdn(?:ea|ts|tl)"
    r"|(?<![a-z0-9])sig(?![a-z]))[\w-]{0,24}"
)
_IN_NAMES = ("sig", "cred", "secret", "passw", "jwt", "hmac", "token", "policy", "key", "hdn", "x-")
# A name reveals a secret: sig=…, "sig": "…", <Signature>…, X-Amz-Signature: …. After "token:" only
# a long value counts, because that word also occurs in prose.
_NAMED = re.compile(
    rf"({_NAME}(?:{_QUOTE}?\s{{0,3}}=>?\s{{0,3}}b?{_QUOTE}?|{_QUOTE}\s{{0,3}}[:,]\s{{0,3}}b?{_QUOTE}"
    rf"|>|\s{{0,3}}:\s{{0,3}}(?=[^{_END}]{{16}}))|x-[a-z0-9-]{{1,40}}:\s{{0,3}})({_REST})",
    re.IGNORECASE,
)
_BEARER = re.compile(
    rf"(bearer\s+){_QUOTE}*(?!<hidden)(?:bearer\s+{_QUOTE}?)*[^\s\"',;]+", re.IGNORECASE
)
_LONG_BEARER = re.compile(rf"(bearer\s+){_QUOTE}*(?!<hidden)[^\s\"',;]{{16,}}", re.IGNORECASE)
_JWT = re.compile(rf"(?<![\w-])eyJ[\w-]{{8,}}\.[\w-]{{4,}}{_REST}")
_USER_INFO = re.compile(r"://[^/]*@")
_KEY = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{6,}")

MAX_LAYERS = 8
"""Number of nested escapes that are decoded; a word with more of them is redacted as a whole."""

LONGEST_SEARCHED = 20_000
"""Maximum characters of a text that is searched for secrets; for megabytes, that takes minutes."""

_WEB = re.compile(r"https?://", re.IGNORECASE)
_MARKED_DATA_URI = re.compile(rf"data:[^,]*,{HIDDEN}[0-9a-f]{{12}}, [0-9]+ characters>")
_REPLACED = "\N{REPLACEMENT CHARACTER}"


def redact_url(url: str) -> str:
    """Return the URL without user info, with a hash as its query, and with its path redacted."""
    return hide_secrets(_without_query(url))


def _signed_url(url: str) -> str:
    """Redact the URL of a source; the hash does not change when it is signed anew."""
    bare = without_signature(url)
    if bare == url:
        return redact_url(url)
    address, _, query = bare.partition("?")
    return hide_secrets(f"{_USER_INFO.sub('://', address)}?{_mark(query)}")


def _without_query(url: str) -> str:
    address, mark, token = url, "", ""
    if found := re.search(r"[?#]", url):
        address, mark, token = url[: found.start()], found[0], url[found.end() :]
    address = _USER_INFO.sub("://", address)
    if not token or _REDACTED.match(token):
        return f"{address}{mark}{token}"
    return f"{address}?{_mark(token)}"


def redact_source(source: str) -> str:
    """Redact a source of a request: a data URI to type, hash and size, a URL as by redact_url."""
    if source[:5].lower() != "data:":
        return redact_url(source)
    media_type, _, payload = source.partition(",")
    return f"{media_type},{HIDDEN}{_digest(payload)}, {len(payload)} characters>"


def redact_payload(value: Any, *, urls: bool = True) -> Any:
    """Return a JSON value with the secrets in each of its texts redacted.

    A text that begins with a data URI counts as one data URI as a whole. A text that is too long to
    be searched counts as a secret.

    Args:
        value: The value; a text in it may be a source, a prompt, or anything else.
        urls: True if the signatures of URLs are secrets, too. Pass False for URLs that must still
            work; data URIs and API keys are redacted in any case.
    """
    if isinstance(value, dict):
        return {name: redact_payload(item, urls=urls) for name, item in value.items()}
    if isinstance(value, list):
        return [redact_payload(item, urls=urls) for item in value]
    if not isinstance(value, str) or _MARKED_DATA_URI.fullmatch(value):
        return value
    if value[:5].lower() == "data:":
        return redact_source(value)
    if len(value) > LONGEST_SEARCHED:
        return f"{HIDDEN}{_digest(value)}, {len(value)} characters>"
    is_url = _WEB.match(value) and not re.search(r"\s", value)
    if urls:
        return _signed_url(value) if is_url else hide_secrets(value, bearer=_LONG_BEARER)
    return value if is_url else _without_payloads(value)


def is_redacted(text: str) -> bool:
    """Return True if the text ends with the mark of a redacted secret."""
    return bool(_REDACTED.search(text))


def hide_secrets(text: str, *, bearer: re.Pattern[str] = _BEARER) -> str:
    """Return the text without the tokens of URLs, API keys and data URIs, escaped or not.

    If a secret is found inside escapes, the returned text is the unescaped one.

    Args:
        text: The text.
        bearer: Pattern for the word "bearer" and the token after it. In a prompt, that word is
            rarely followed by a token.
    """
    shown = layer = _hidden(text, bearer)
    for _ in range(MAX_LAYERS):
        peeled = peel(layer)
        if peeled == layer:
            return shown
        layer = _hidden(peeled, bearer)
        if layer != peeled:
            shown = layer.replace(WRAP, " ")
    return re.sub(r"\S+", lambda word: word[0] if peel(word[0]) == word[0] else "<hidden>", shown)


def _hidden(text: str, bearer: re.Pattern[str]) -> str:
    """Return the text without the secrets that it contains in unescaped form."""
    text = bearer.sub(r"\1<hidden>", text)  # first: the others may cut off its start
    text = _URL.sub(lambda found: _without_query(found[0].replace("\\/", "/")), text)
    text = _QUERY.sub(lambda found: f"?{_mark(found[1])}", text)
    text = _PAIRS.sub(lambda found: _mark(found[0]), text)
    lowered = text.lower()
    if any(word in lowered for word in _IN_NAMES):  # ten times faster than the search
        text = _NAMED.sub(lambda found: f"{found[1]}{_mark(found[2])}", text)
    return _without_payloads(text)


def _without_payloads(text: str) -> str:
    text = _DATA_URI.sub(lambda found: redact_source(found[0]), text)
    text = _BASE64.sub(r"\1<hidden>", text)
    text = _JWT.sub(lambda found: _mark(found[0]), text)
    return _KEY.sub("<hidden key>", text)


def scrub(text: str, limit: int = 500) -> str:
    """Make an untrusted text safe to repeat: no secrets, one line, printable, limited length."""
    text = printable(" ".join(hide_secrets(text[: 20 * limit]).split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def reason_of(error: Exception) -> str:
    """Return the reason that the system or a library gives for an error, safe to repeat."""
    return scrub(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def printable(text: str) -> str:
    """Replace characters that control a terminal or are invisible; newlines and tabs stay."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else _REPLACED for sign in text)


class RedactingFilter(logging.Filter):
    """Filter for the loggers of libraries that log their inputs, such as URLs (httpx, fsspec)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, cut and with the secrets in its message and traceback redacted."""
        record.msg, record.args = _redact_log(record.getMessage()), None
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            record.exc_info, record.exc_text = None, _redact_log(trace)
        return True


def _redact_log(text: str) -> str:
    cut = text[:LONGEST_SEARCHED]  # a library may log the picture that it was given
    return hide_secrets(cut) + (f"… ({len(text):,} characters)" if len(text) > len(cut) else "")


def host_of(url: str) -> str:
    """Return the host of a URL in lower case, or an empty string."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def origin_of(url: str) -> str:
    """Return the scheme, host and port of a URL in lower case, or an empty string."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname and port else ""


def is_loopback(url: str) -> bool:
    """Return True if the URL names this machine, where plain http is safe."""
    host = host_of(url)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mark(secret: str) -> str:
    return f"{HIDDEN}{_digest(secret)}>"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
