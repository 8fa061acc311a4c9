# SPDX-License-Identifier: Apache-2.0
"""Format, encoding and delimiter of a table file, from its content; pure functions.

Spreadsheets and data frames write what their country and version prescribe: semicolons, tabs,
UTF-16, a suffix that says something else. The first bytes decide where they are certain.
"""

import codecs
import csv
import re
from collections.abc import Iterable

from .row_validation import is_known
from .table_files import FileFormat, Unreadable

_PARQUET_MARK = b"PAR1"
_NOT_TABLES = {
    b"PK\x03\x04": "an Excel or OpenDocument workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF": "a PDF",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the mark of UTF-16, so it is checked before
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')
_SINGLE_BYTE = {"cp1252", "iso8859-1", "iso8859-15"}

EXPORT = "export it as CSV UTF-8"


def check_is_table(name: str, head: bytes) -> None:
    """Refuse a workbook, a PDF or a web page, which no reader of tables understands.

    Raises:
        Unreadable: The first bytes are those of another kind of file.
    """
    found = next((what for mark, what in _NOT_TABLES.items() if head.startswith(mark)), None)
    if found:
        raise Unreadable(f"{name} is {found}, which is not read: {EXPORT}")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise Unreadable(
            f"{name} is a web page or XML, not a table. A sheet of Google Sheets has the address "
            "https://docs.google.com/spreadsheets/d/ID/export?format=csv, and it must be readable "
            "without a login"
        )


def format_of_content(head: bytes) -> FileFormat | None:
    """Return the format of a file by its first bytes, or None if they do not decide."""
    if head.startswith(_PARQUET_MARK):
        return FileFormat.PARQUET
    encoding = encoding_of(head, None)
    text = head.decode(encoding, "ignore").strip()
    if text[:1] in {"{", "["}:
        return FileFormat.JSONL
    first, *_ = text.splitlines() or [""]
    return FileFormat.CSV if "id" in columns_of(first, delimiter_of(first)) else None


def check_encoding(encoding: str | None) -> None:
    """Check the name of an encoding.

    Raises:
        Unreadable: Python does not know it as an encoding of text.
    """
    try:
        "id".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        raise Unreadable(
            f"the encoding {encoding!r} is not known: write, for example, utf-8, windows-1252, "
            "utf-16 or shift_jis"
        ) from None


def encoding_of(head: bytes, named: str | None) -> str:
    """Return the encoding of a text file: by its mark, else as named, else UTF-8."""
    marked = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
    if marked or named:
        return marked or str(named)
    if head[:1] and head[1:2] == b"\0":  # the first character of a table is an ASCII character
        return "utf-16-le"
    return "utf-16-be" if head[:1] == b"\0" and head[1:2] else "utf-8"


def separator_line(line: str) -> str | None:
    """Return the delimiter that Excel's line ``sep=;`` names, or None for another line."""
    found = _SEPARATOR_LINE.fullmatch(line)
    return found[1] if found else None


def delimiter_of(header: str) -> str:
    """Return the delimiter of a CSV file: the one that finds the most known columns."""

    def known(delimiter: str) -> int:
        return sum(is_known(name) for name in columns_of(header, delimiter))

    return max(_DELIMITERS, key=known)


def columns_of(header: str, delimiter: str) -> list[str]:
    """Return the names in a header, without surrounding blanks and byte order marks."""
    cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    return [column_name(cell) for cell in cells]


def without_padding(lines: Iterable[str], header: str, delimiter: str) -> Iterable[str]:
    """Return the lines of a CSV file without blanks between a quote and the next delimiter.

    CSV does not allow them, and some programs write them in the whole file, in the header too.
    """
    end = re.escape(delimiter)
    if not re.search(rf"[ \t]{end}", header):
        return lines
    padding = re.compile(rf'"[ \t]+(?={end}|[\r\n]*\Z)')
    return (padding.sub('"', line) for line in lines)


def column_name(cell: str) -> str:
    """Return the name of a column without surrounding blanks and byte order marks."""
    return cell.strip().strip("\ufeff").strip()


class EncodingCheck:
    """Check of the lines of one file: whether it is in the encoding in which it is read.

    A file in Windows-1252 has no valid UTF-8 beyond ASCII. That is one problem of the file, and
    not one of each row. In a file that is in UTF-8 otherwise, an invalid line is a bad row.

    Args:
        name: Name of the file for messages.
        encoding: Encoding in which it is read.
    """

    def __init__(self, name: str, encoding: str) -> None:
        self._name = name
        self._encoding = encoding
        codec = codecs.lookup(encoding).name
        self._may_be_utf8 = codec in _SINGLE_BYTE
        self._may_be_other = codec == "utf-8"
        self._lines = 0
        self._invalid = 0
        self._is_utf8 = False

    def see(self, line: str) -> None:
        """Look at the next line."""
        self._lines += 1
        if line.isascii():
            return
        if self._may_be_other:
            is_valid = _encodes(line, "utf-8")
        else:
            is_valid = self._may_be_utf8 and _decodes(line.encode(self._encoding))
        if is_valid:
            self._is_utf8 = True
        elif not self._invalid:
            self._invalid = self._lines

    def finish(self) -> None:
        """Judge the whole file.

        Raises:
            Unreadable: It is in another encoding.
        """
        if self._may_be_other and self._invalid and not self._is_utf8:
            raise Unreadable(
                f"{self._name} is not in UTF-8 (line {self._invalid}): {EXPORT}, or name its "
                "encoding: --encoding windows-1252 on the command line, manifest_encoding in a flow"
            )
        if self._may_be_utf8 and self._is_utf8 and not self._invalid:
            raise Unreadable(
                f"{self._name} is in UTF-8 and not in {self._encoding}: leave the encoding out"
            )


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _decodes(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
