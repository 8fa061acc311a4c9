# SPDX-License-Identifier: Apache-2.0
r"""Removal of escapes, one layer at a time, to find secrets that a text contains in escaped form.

A service may repeat a URL in the form in which it received it: percent-encoded in a query, with
``\u0026`` in JSON, with ``&amp;`` in HTML, with backslashes in a log, as Base64 in a path, or
nested in several of these. Escapes are only decoded to printable ASCII. All others stay escaped, so
that decoding never adds a control character.
"""

import base64
import binascii
import re
from html.entities import html5

WRAP = "\u2028"
"""Replacement for an escaped line break; a real one would split a line of a log."""

_ESCAPE = re.compile(
    r"%u(?P<u1>[0-9a-f]{4})|%(?P<x1>[0-9a-f]{2})"
    r"|\\u(?P<u2>[0-9a-f]{4})|\\u\{(?P<u3>[0-9a-f]{1,6})\}|\\x(?P<x2>[0-9a-f]{2})"
    r"|\\(?P<octal>[01][0-7]{2})|\\(?P<sign>[^a-z0-9]|[nrt])"
    r"|&#x(?P<x3>[0-9a-f]{1,6});|&#(?P<decimal>[0-9]{1,7});?|&(?P<name>[a-z]{2,31};)",
    re.IGNORECASE | re.DOTALL,
)
_SIGNS = {"n": WRAP, "r": WRAP, "t": " ", "\n": "", "\r": ""}
_CONTROLS = {"\n": WRAP, "\r": WRAP, "\t": " "}
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
_SHORTEST = 20
_URL_SAFE = str.maketrans("-_", "+/")


def peel(text: str) -> str:
    """Return the text with the outermost layer of its escapes removed; pure."""
    text = _ESCAPE.sub(_unescaped, text)
    return _ENCODED.sub(lambda found: _decoded(found[0]), text)


def _unescaped(found: re.Match[str]) -> str:
    kind, value = found.lastgroup or "", found[found.lastgroup or 0]
    if kind == "sign":
        return _SIGNS.get(value, value if value.isascii() else found[0])
    if kind == "name":
        sign = html5.get(value.lower(), "")
    else:
        number = int(value, {"octal": 8, "decimal": 10}.get(kind, 16))
        sign = chr(number) if number < 0x7F else ""
    sign = _CONTROLS.get(sign, sign)
    return sign if sign == WRAP or (sign.isascii() and sign.isprintable() and sign) else found[0]


def _decoded(run: str) -> str:
    """Return the text in a run of Base64 or hexadecimal digits, or the run if it holds no text."""
    whole = _text_in(run)
    if whole is not None or "/" not in run:
        return run if whole is None else whole
    parts = [_text_in(part) or part for part in run.split("/")]  # segments of a path
    return "/".join(parts)


def _text_in(run: str) -> str | None:
    digits = run.rstrip("=")
    if len(digits) < _SHORTEST:
        return None
    try:
        try:
            content = bytes.fromhex(digits)
        except ValueError:
            padded = digits.translate(_URL_SAFE) + "=" * (-len(digits) % 4)
            content = base64.b64decode(padded, validate=True)
    except binascii.Error:
        return None
    if not content.isascii():
        return None
    text = content.decode("ascii").replace("\r\n", "\n").replace("\n", WRAP)
    return text if all(sign == WRAP or sign.isprintable() for sign in text) else None
