# SPDX-License-Identifier: Apache-2.0
"""Addresses without their signatures: the identity of what is at a URL.

A store that signs a URL anew gives another text for the same object. So requests are compared by
the address without the parameters of the signature. Only what certainly belongs to a signature is
left out: if an unknown parameter chose the picture, two pictures would become one.
"""

import base64
import binascii
import json
import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MAX_LENGTH = 8192
"""Maximum characters of a URL that is taken apart; a longer one is its own identity."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_AMZ = "x-amz-algorithm x-amz-credential x-amz-date x-amz-expires x-amz-signedheaders"
_SCHEMES = (
    # AWS v4: S3, Cloudflare R2, MinIO, Backblaze and others; with x-id, AWS's SDK names the call.
    (
        _names("x-amz-signature"),
        _names(
            f"{_AMZ} x-amz-signature x-amz-security-token x-amz-content-sha256 x-amz-region-set "
            "x-amz-user-agent x-amz-checksum-mode x-amz-s3session-token x-id"
        ),
    ),
    # AWS v2
    (
        _names("awsaccesskeyid signature"),
        _names("awsaccesskeyid signature expires x-amz-security-token"),
    ),
    # Google Cloud Storage v4
    (
        _names("x-goog-signature"),
        _names(
            "x-goog-algorithm x-goog-credential x-goog-date x-goog-expires x-goog-signedheaders "
            "x-goog-signature x-goog-content-sha256"
        ),
    ),
    # Google Cloud Storage v2
    (_names("googleaccessid signature"), _names("googleaccessid signature expires")),
    # Google Cloud CDN
    (_names("keyname signature"), _names("keyname signature expires urlprefix")),
    # CloudFront
    (
        _names("key-pair-id signature"),
        _names("key-pair-id signature expires policy hash-algorithm"),
    ),
    # Azure: shared access signatures of an account, a service or a user
    (
        _names("sv sig"),
        _names(
            "sv sig ss srt sr sp st se si sip spr sdd ses srh srq skoid sktid skt ske sks skv "
            "skdutid sduoid saoid suoid scid"
        ),
    ),
    # Aliyun OSS v1
    (
        _names("ossaccesskeyid signature"),
        _names("ossaccesskeyid signature expires security-token"),
    ),
    # Aliyun OSS v2 and v4
    (
        _names("x-oss-signature"),
        _names(
            "x-oss-signature x-oss-signature-version x-oss-credential x-oss-date x-oss-expires "
            "x-oss-access-key-id x-oss-additional-headers x-oss-security-token security-token"
        ),
    ),
    # Tencent COS
    (
        _names("q-signature"),
        _names(
            "q-sign-algorithm q-ak q-sign-time q-key-time q-header-list q-url-param-list "
            "q-signature x-cos-security-token"
        ),
    ),
    # Huawei OBS
    (
        _names("accesskeyid signature"),
        _names("accesskeyid signature expires x-obs-security-token"),
    ),
    # Volcengine TOS
    (
        _names("x-tos-signature"),
        _names(
            "x-tos-algorithm x-tos-credential x-tos-date x-tos-expires x-tos-signedheaders "
            "x-tos-signature x-tos-security-token"
        ),
    ),
    # Discord
    (_names("ex is hm"), _names("ex is hm")),
)
"""Parameters that show the scheme of a signature, and all parameters of that scheme."""

_SIGNATURES = _names("signature sig sign hmac")
_TOKENS = _names(
    "token access_token accesstoken auth_token authtoken auth_key authkey auth authorization jwt "
    "_jwt verify tempauth bcdn_token hdnea hdnts hdntl"
)
_EXPIRIES = _names("expires expire expiry expiration expires_at expiresat expires_in valid_until")
_SHORT_EXPIRIES = _names("e t ts exp timestamp")  # "t" may also choose a frame of a video
_TIME = re.compile(r"[12][0-9]{9}|1[0-9]{12}|(?=[0-9]*[a-f])[67][0-9a-f]{7}", re.IGNORECASE)
"""Seconds or milliseconds since 1970; the seconds also in hexadecimal, as of Tencent's CDN."""
_FILE = re.compile(
    r"[^/]\.(?:jpe?g|jpe|jfif|png|webp|avif|hei[cf]|gif|bmp|tiff?|mp4|m4v|mov|qt|webm|mkv|avi|mpe?g"
    r"|ogv|3gp|flv|wmv)\Z",
    re.IGNORECASE,
)
_CLAIMS_OF_TIME = _names("iat exp nbf jti auth_time")
_WEB = re.compile(r"https?://", re.IGNORECASE)


def without_signature(url: str) -> str:
    """Return a URL without the parameters of its signature, if it has one; pure.

    A signature by a known scheme is left out. Parameters with a general name, such as ``token``,
    are left out only if the rest names the file: some services find it by its token alone. Of a
    JSON Web Token, the claims stay that are not about its time.
    """
    return _without_signature(url, is_nested=False)


def _without_signature(url: str, *, is_nested: bool) -> str:
    address, mark, rest = url.partition("?")
    if not mark or len(url) > MAX_LENGTH or not _WEB.match(url):
        return url
    query, fragment_mark, fragment = rest.partition("#")
    pairs = [(_name(part), part) for part in query.split("&")]
    path = _path(address)
    signing = _signing(dict(reversed(pairs)), is_file=bool(_FILE.search(path)))
    kept = [_claims(part) for name, part in pairs if name not in signing]
    if not path.strip("/") and not any(kept):  # nothing is left that names the file
        return url
    if not is_nested:
        kept = [_without_nested(part) for part in kept]
    left = f"?{'&'.join(kept)}" if kept else ""
    return f"{address}{left}{fragment_mark}{fragment}"


def unsigned(value: Any) -> Any:
    """Return a JSON value in which no URL has a signature; pure."""
    if isinstance(value, dict):
        return {name: unsigned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [unsigned(item) for item in value]
    if isinstance(value, str) and _WEB.match(value) and not re.search(r"\s", value):
        return without_signature(value)
    return value


def _name(part: str) -> str:
    return unquote(part.partition("=")[0]).lower()


def _path(address: str) -> str:
    try:
        return unquote(urlsplit(address).path)
    except ValueError:
        return ""


def _signing(parts: dict[str, str], *, is_file: bool) -> set[str]:
    """Return the names of the parameters that belong to a signature."""
    present = parts.keys()
    found = {name for signs, names in _SCHEMES if signs <= present for name in names & present}
    if found:
        return found
    expiries = _EXPIRIES & present | {
        name for name in _SHORT_EXPIRIES & present if _TIME.fullmatch(_value(parts[name]))
    }
    signatures = _SIGNATURES & present if is_file or expiries else frozenset[str]()
    tokens = _TOKENS & present if is_file else frozenset[str]()
    # nginx (secure_link) and imgix use names that elsewhere stand for the content and its size
    if is_file and expiries:
        tokens |= {name for name in {"md5", "s", "st"} & present if len(_value(parts[name])) >= 20}
    return {*signatures, *tokens, *expiries} if signatures or tokens else set()


def _value(part: str) -> str:
    return unquote(part.partition("=")[2])


def _claims(part: str) -> str:
    """Return a parameter; of a JSON Web Token in it, only the claims that last."""
    name, _, value = part.partition("=")
    pieces = value.split(".")
    if name.lower() not in _TOKENS or len(pieces) != 3 or not value.startswith("eyJ"):
        return part
    try:
        payload = pieces[1].translate(str.maketrans("-_", "+/"))
        claims = json.loads(base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True))
    except (binascii.Error, ValueError):
        return part
    if not isinstance(claims, dict):
        return part
    lasting = {name: value for name, value in claims.items() if name not in _CLAIMS_OF_TIME}
    return f"{name}={json.dumps(lasting, sort_keys=True)}" if lasting else part


def _without_nested(part: str) -> str:
    """Return a parameter; if it is a URL, as for a service that resizes, without its signature."""
    name, mark, value = part.partition("=")
    inner = unquote(value)
    bare = _without_signature(inner, is_nested=True)
    return part if bare == inner else f"{name}{mark}{quote(bare, safe='')}"
