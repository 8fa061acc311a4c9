# SPDX-License-Identifier: Apache-2.0
"""What may be shown of a secret-bearing text.

A signed URL's query is a token, a data URI is somebody's picture, and a service may repeat
either in an error message. Nothing leaves this package (log, error, artifact, result, sidecar)
before it went through one of these functions.
"""

import hashlib
import ipaddress
import logging
import re
from typing import Any
from urllib.parse import urlsplit

HIDDEN = "<sha256:"
"""Marks a shortened text, which no longer works as an address."""

_SHORTENED = re.compile(rf"{HIDDEN}[0-9a-f]{{12}}(?:, [0-9]+ characters)?>\Z")

# In doubt too much is hidden: a URL ends only where none can go on, slashes may be escaped.
_URL = re.compile(r"[a-z][a-z0-9+.-]{0,20}:(?:\\?/){2}[^\s\"<>]+", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^\s\"'<>,]{0,100},[^\s\"'<>]+", re.IGNORECASE)
_BASE64 = re.compile(r"(base64,)(?!<sha256:)[^\s\"'<>]+", re.IGNORECASE)
# A URL may be told without its beginning ("GET /a.png?sig=…"), or quoted.
_QUERY = re.compile(r"(\?|%3F)((?:(?!%3F)[^\s\"'<>?=])*(?:=|%3D)[^\s\"'<>]+)", re.IGNORECASE)
# It may be quoted, and the quote escaped, as in JSON that is told as it came.
_QUOTE = r"(?:\\*[\"'])?"
_BEARER = re.compile(
    rf"(bearer\s+){_QUOTE}+(?!<hidden)(?:bearer\s+{_QUOTE})*[^\s\"',;]+", re.IGNORECASE
)
_USER_INFO = re.compile(r"://[^/]*@")
_KEY = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{6,}")

_REPLACED = "\N{REPLACEMENT CHARACTER}"


def shown_url(url: str) -> str:
    """The URL without user info and with a hash in place of its query and fragment."""
    address, mark, token = url, "", ""
    if found := re.search(r"[?#]", url):
        address, mark, token = url[: found.start()], found[0], url[found.end() :]
    address = _USER_INFO.sub("://", address)
    return f"{address}?{HIDDEN}{_digest(token)}>" if token else f"{address}{mark}"


def shown_source(source: str) -> str:
    """A source that a request names: a data URI as type, hash and size, a URL as shown_url."""
    if source[:5].lower() != "data:":
        return shown_url(source)
    media_type, _, payload = source.partition(",")
    return f"{media_type},{HIDDEN}{_digest(payload)}, {len(payload)} characters>"


def shortened(value: Any, *, urls: bool = True) -> Any:
    """A JSON value with each data URI and, if wanted, each signed URL in it shortened.

    A text that begins with one is taken for it as a whole. URLs are found within a text, too, as in
    a prompt, whose other words are nobody's secret.
    """
    if isinstance(value, dict):
        return {name: shortened(item, urls=urls) for name, item in value.items()}
    if isinstance(value, list):
        return [shortened(item, urls=urls) for item in value]
    if not isinstance(value, str):
        return value
    if re.match(r"data:|https?://" if urls else r"data:", value, re.IGNORECASE):
        return shown_source(value)
    return _with_urls_shown(value) if urls else value


def _with_urls_shown(text: str) -> str:
    return _URL.sub(lambda found: shown_url(found[0].replace("\\/", "/")), text)


def is_shortened(text: str) -> bool:
    """Whether the text ends as one does that was shortened by one of these functions."""
    return bool(_SHORTENED.search(text))


def hide_secrets(text: str) -> str:
    """The text without tokens of URLs, keys and data URIs."""
    text = _BEARER.sub(r"\1<hidden>", text)  # first, as the others may swallow its beginning
    text = _with_urls_shown(text)
    text = _QUERY.sub(lambda found: f"{found[1]}{HIDDEN}{_digest(found[2])}>", text)
    text = _DATA_URI.sub(lambda found: shown_source(found[0]), text)
    text = _BASE64.sub(r"\1<hidden>", text)
    return _KEY.sub("<hidden key>", text)


def scrub(text: str, limit: int = 500) -> str:
    """Somebody else's words, safe to repeat: no secret, one line, nothing unprintable, bounded."""
    text = printable(" ".join(hide_secrets(text[: 20 * limit]).split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def printable(text: str) -> str:
    """The text without what moves a terminal or hides in it; lines and tabs stay."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else _REPLACED for sign in text)


class HideSecrets(logging.Filter):
    """For loggers of libraries that log what they were given: URLs (httpx, fsspec), inputs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with its secrets hidden, those of its traceback too."""
        record.msg, record.args = hide_secrets(record.getMessage()), None
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            record.exc_info, record.exc_text = None, hide_secrets(trace)
        return True


def host_of(url: str) -> str:
    """The host of a URL in lower case, or an empty text."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL in lower case, or an empty text."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname and port else ""


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine, where plain http is safe."""
    host = host_of(url)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
