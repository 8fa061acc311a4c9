# SPDX-License-Identifier: Apache-2.0
"""Files of a manifest: one file, the parts in a folder, or the reply of a web address."""

import re
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import httpx

from ..http_clients import tls_context
from ..redact import redact_url, scrub
from .table_content import check_is_table, format_of_content
from .table_files import (
    FileFormat,
    Unreadable,
    decompressed,
    is_gzipped,
    is_web,
    located,
    suffix_format,
)

_HEAD = 4096
_IN_MEMORY = 8 * 2**20
_TIMEOUT = httpx.Timeout(30.0)

# A table of these formats is not the sum of its Parquet files: some of them hold deleted rows.
_TABLE_FORMATS = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata": "Iceberg"}

_CSV_TYPES = {"text/csv", "application/csv", "text/tab-separated-values", "text/plain"}
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Part:
    """One open file of a manifest.

    Attributes:
        name: Location for messages, without secrets.
        file: Content, decompressed.
        head: First bytes of the content.
        format: Format in which to read it.
        fields: Fields that the folders of the file set, as ``route=image_to_video``.
        is_one_of_many: True for a part in a folder.
    """

    name: str
    file: Any = field(repr=False)
    head: bytes = field(repr=False)
    format: FileFormat
    fields: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    is_one_of_many: bool = False


def open_parts(location: str, named: FileFormat | None) -> Generator[Part, None, None]:
    """Yield the files of a manifest, each open until the next one is taken.

    Args:
        location: Path, fsspec URL or web address of a file, or a folder of files.
        named: Format that the user names, or None.

    Raises:
        Unreadable: A file is of another kind, or nothing says in which format it is.
    """
    name = redact_url(location)
    if is_web(location):
        with _fetched(location) as (file, its_name, media_type):
            by_name = named or suffix_format(location) or suffix_format(its_name)
            by_type = FileFormat.CSV if media_type in _CSV_TYPES else None
            yield _part(name, decompressed(file, must=False), by_name, by_type)
        return
    files, path = located(location)
    if not files.isdir(path):
        with files.open(path, "rb") as file:
            content = decompressed(file, must=is_gzipped(location))
            yield _part(name, content, named or suffix_format(location))
        return
    for each in _parts_in(files, path, name):
        below = _relative(files, each, path)
        with files.open(each, "rb") as file:
            content = decompressed(file, must=is_gzipped(each))
            its = named or suffix_format(each)
            yield _part(f"{name.rstrip('/')}/{below}", content, its, fields=_fields_of(below))


def _part(
    name: str,
    file: Any,
    by_name: FileFormat | None,
    by_type: FileFormat | None = None,
    fields: Mapping[str, str | None] | None = None,
) -> Part:
    head = file.read(_HEAD)
    file.seek(0)
    check_is_table(name, head)
    format_ = by_name or format_of_content(head) or by_type
    if format_ is None:
        raise Unreadable(
            f"{name} has no known format: its name must end in .jsonl, .ndjson or .csv, each "
            "optionally followed by .gz, or in .parquet. Otherwise name the format: --format csv "
            "on the command line, manifest_format in a flow"
        )
    return Part(name, file, head, format_, fields or {}, is_one_of_many=fields is not None)


def _parts_in(files: Any, folder: str, name: str) -> list[str]:
    """Return the table files in a folder and below it, in the order of their names.

    Raises:
        Unreadable: There are none, or the folder is a table of a format that is not read.
    """
    entries = {PurePosixPath(entry).name for entry in files.ls(folder, detail=False)}
    for mark, kind in _TABLE_FORMATS.items():
        if mark in entries:
            raise Unreadable(
                f"{name} is a folder with {mark}, as in a table of {kind}, which is not read: "
                "write its rows to a Parquet file"
            )
    found = sorted(
        each
        for each in files.find(folder)
        if not re.search(r"(^|/)[._]", _relative(files, each, folder))  # as _SUCCESS
    )
    if not found:
        raise Unreadable(f"{name} is a folder without tables")
    return found


def _relative(files: Any, path: str, folder: str) -> str:
    start = str(files._strip_protocol(folder)).rstrip("/")  # noqa: SLF001 -- fsspec has no other
    return path.removeprefix(start).lstrip("/")


def _fields_of(below: str) -> dict[str, str | None]:
    """Return the fields in the names of folders, as Spark and Hive write them: ``model=x/``."""
    pairs = [step.split("=", 1) for step in below.split("/")[:-1] if "=" in step]
    return {name: None if value == _NO_VALUE else unquote(value) for name, value in pairs}


@contextmanager
def _fetched(url: str) -> Iterator[tuple[Any, str, str]]:
    """Fetch a file from the web; yield it with the name and the media type that the server says.

    Raises:
        Unreadable: The server does not answer, or not with the file.
    """
    name = redact_url(url)
    try:
        with (
            tempfile.SpooledTemporaryFile(_IN_MEMORY) as file,
            httpx.Client(verify=tls_context(), timeout=_TIMEOUT, follow_redirects=True) as http,
        ):
            with http.stream("GET", url) as reply:
                _check_status(name, reply)
                for block in reply.iter_bytes():
                    file.write(block)
            file.seek(0)
            yield file, *_described(reply.headers)
    except httpx.HTTPError as error:
        raise Unreadable(
            f"{name} cannot be read: {scrub(str(error)) or type(error).__name__}"
        ) from None


def _check_status(name: str, reply: httpx.Response) -> None:
    status = reply.status_code
    if status in {404, 410}:
        raise Unreadable(f"{name} cannot be read: the file does not exist (HTTP {status})")
    if status in {400, 401, 403}:
        raise Unreadable(
            f"{name} cannot be read: HTTP {status}. Its signature may have expired, or it needs a "
            "login"
        )
    if not reply.is_success:
        raise Unreadable(f"{name} cannot be read: HTTP {status}")


def _described(headers: httpx.Headers) -> tuple[str, str]:
    """Return the file name and the media type in the headers of a reply, or empty texts."""
    message = Message()
    for name in ("content-disposition", "content-type"):
        if re.fullmatch(r"[ -~]+", headers.get(name, "")):
            message[name] = headers[name]
    media_type = message.get_content_type() if "content-type" in message else ""
    return message.get_filename() or "", media_type
