# SPDX-License-Identifier: Apache-2.0
"""Conversion of storage locations to URLs that a browser can open from a page.

Each resulting URL is relative, or it begins with ``file:///``, ``http://`` or ``https://``. The
module returns no other scheme, because a location may be untrusted.
"""

import ntpath
import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache
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


def address(location: str, base: str) -> str | None:
    """Return the URL of a location for a page in a folder, or None if a browser cannot open it.

    Args:
        location: Path or URL from a storage.
        base: Folder of the page, as path or URL. A file in the folder or below it gets a relative
            URL, so that the folder can be moved, copied or served.
    """
    path, folder = _local(location), _folder(base)
    if path is None:
        return _remote(without_login(location), without_login(base))
    if isinstance(folder, type(path)) and (below := _below(path, folder)):
        return _joined(below) if ".." not in below else None
    return _file_url(path) if path.is_absolute() else None


def without_login(location: str) -> str:
    """Return a location without the user name and password that a URL can contain."""
    return _LOGIN.sub(r"\1", location, count=1)


def origins(addresses: Iterable[str]) -> list[str]:
    """Return the Content-Security-Policy sources that allow exactly these URLs to load."""
    return sorted({source for each in addresses for source in _sources(each)})


def _sources(address: str) -> tuple[str, ...]:
    if found := _ORIGIN.match(address):
        return (found[0],)
    if scheme := re.match(r"(file|data):", address):
        return (scheme[0],)
    return ("'self'", "file:")


def _local(location: str) -> PurePath | None:
    if location[:7].lower() == "file://":
        location = unquote(location[7:])
        location = location[1:] if _DRIVE.match(location[1:]) else location
    elif _SCHEME.match(location):
        return None
    if _DRIVE.match(location):
        return PureWindowsPath(ntpath.normpath(location))
    return PurePosixPath(re.sub(r"^/+", "/", posixpath.normpath(location)))


def _below(path: PurePath, folder: PurePath) -> tuple[str, ...]:
    """Return the names that lead from a folder to a path, or none if it is not below the folder."""
    try:
        return path.relative_to(folder).parts
    except ValueError:
        return ()


@lru_cache(maxsize=8)
def _folder(base: str) -> PurePath | None:
    """Return the folder of a page; all files of a batch are compared with the same one."""
    return _local(base)


def _remote(url: str, base: str) -> str | None:
    if re.match(r"https?:", url, re.IGNORECASE):
        origin = _ORIGIN.match(url)
        return origin[0].lower() + _quoted(url[origin.end() :], _AS_IT_IS) if origin else None
    folder = f"{base.rstrip('/')}/"
    below = url.removeprefix(folder).split("/") if url.startswith(folder) else [""]
    return _joined(below) if not {"", ".", ".."} & set(below) else None


def _file_url(path: PurePath) -> str:
    # The colon of a drive stays. Elsewhere a colon is part of a name and is quoted.
    return "/".join(["file://", *filter(None, [path.drive]), _joined(path.parts[1:])])


def _joined(names: Iterable[str]) -> str:
    return "/".join(_quoted(name, "") for name in names)


def _quoted(text: str, safe: str) -> str:
    # Python represents file names that are not valid UTF-8 with surrogates. They are quoted as
    # the original bytes.
    text = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    return quote(text, safe=safe, errors="surrogateescape")
