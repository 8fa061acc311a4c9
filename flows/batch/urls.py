# SPDX-License-Identifier: Apache-2.0
"""What a browser can open of the places that a storage names, seen from one page.

An address that comes out of here is relative, or begins with ``file:///``, ``http://`` or
``https://``. No other scheme does, whatever somebody wrote where a place was expected.
"""

import ntpath
import posixpath
import re
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from urllib.parse import quote, unquote

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)
_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://)[^/?#\\]*@", re.IGNORECASE)
_ORIGIN = re.compile(
    r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?=[/?#]|$)", re.IGNORECASE
)
_LONE_SURROGATE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
_AS_IT_IS = "%/?#[]@!$&()*+,;=:"


def address(place: str, base: str) -> str | None:
    """How a page in one folder leads to a place, or None where no browser can follow.

    Args:
        place: A path or URL, as a storage gives it.
        base: The folder that the page lies in, as path or URL. What lies there or below gets a
            relative address, so that the folder may be moved, copied or served.
    """
    path, folder = _local(place), _local(base)
    if path is None:
        return _remote(without_login(place), without_login(base))
    if isinstance(folder, type(path)) and path != folder and path.is_relative_to(folder):
        below = path.relative_to(folder).parts
        return _joined(below) if ".." not in below else None
    return _file_url(path) if path.is_absolute() else None


def without_login(place: str) -> str:
    """The place without the user name and password that a URL can hold."""
    return _LOGIN.sub(r"\1", place, count=1)


def origins(addresses: Iterable[str]) -> list[str]:
    """The sources of a Content-Security-Policy that let these addresses load, and no others."""
    return sorted({source for each in addresses for source in _sources(each)})


def _sources(address: str) -> tuple[str, ...]:
    if found := _ORIGIN.match(address):
        return (found[0],)
    if scheme := re.match(r"(file|data):", address):
        return (scheme[0],)
    return ("'self'", "file:")


def _local(place: str) -> PurePath | None:
    if place[:7].lower() == "file://":
        place = unquote(place[7:])
        place = place[1:] if _DRIVE.match(place[1:]) else place
    elif _SCHEME.match(place):
        return None
    if _DRIVE.match(place):
        return PureWindowsPath(ntpath.normpath(place))
    return PurePosixPath(re.sub(r"^/+", "/", posixpath.normpath(place)))


def _remote(url: str, base: str) -> str | None:
    if re.match(r"https?:", url, re.IGNORECASE):
        origin = _ORIGIN.match(url)
        return origin[0].lower() + _quoted(url[origin.end() :], _AS_IT_IS) if origin else None
    folder = f"{base.rstrip('/')}/"
    below = url.removeprefix(folder).split("/") if url.startswith(folder) else [""]
    return _joined(below) if not {"", ".", ".."} & set(below) else None


def _file_url(path: PurePath) -> str:
    # A drive keeps its colon; elsewhere a colon is an ordinary character of a name.
    return "/".join(["file://", *filter(None, [path.drive]), _joined(path.parts[1:])])


def _joined(names: Iterable[str]) -> str:
    return "/".join(_quoted(name, "") for name in names)


def _quoted(text: str, safe: str) -> str:
    # File names that are no UTF-8 reach Python as surrogates, and their bytes are meant.
    text = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    return quote(text, safe=safe, errors="surrogateescape")
