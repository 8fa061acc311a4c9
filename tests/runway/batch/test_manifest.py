# SPDX-License-Identifier: Apache-2.0
"""A manifest gives the same batch in every format, and an invalid one is refused before buying."""

import asyncio
import base64
import csv
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from prefect_cometapi.runway import InvalidManifest
from prefect_cometapi.runway.batch.manifest import read_rows
from prefect_cometapi.runway.batch.models import BatchItem
from prefect_cometapi.runway.batch.row_validation import PLACEHOLDERS
from prefect_cometapi.runway.batch.rows import BadRow, batch_keys, check_rows

from ..static_server import static_server

IMAGE, VIDEO = "https://example.com/cat.jpg", "https://example.com/cat.mp4"
CUT_OFF = gzip.compress(b"{}\n", mtime=0)[:-4]

ROW = {"id": "a", "promptImage": IMAGE, "promptText": 'slow, "soft"\nzoom'}
NESTED = {"references", "contentModeration"}
FORMATS = ["jsonl", "ndjson", "csv", "parquet", "jsonl.gz", "csv.gz"]

prompts = st.text(min_size=1, max_size=40).filter(
    lambda text: text.strip() and text.strip() not in PLACEHOLDERS
)
ids = st.integers(0, 10**6) | st.from_regex(r"[a-zä-ü0-9/._-]{1,20}", fullmatch=True)
image_rows = st.fixed_dictionaries(
    {"id": ids, "promptImage": st.just(IMAGE)},
    optional={
        "promptText": prompts,
        "duration": st.sampled_from([5, 10]),
        "ratio": st.sampled_from(["1280:720", "720:1280"]),
        "seed": st.integers(0, 2**20),
        "watermark": st.booleans(),
        "x_sku": prompts,
    },
)
video_rows = st.fixed_dictionaries(
    {"id": ids, "videoUri": st.just(VIDEO), "promptText": prompts},
    optional={
        "route": st.just("video-to-video"),
        "references": st.just([{"type": "image", "uri": IMAGE}]),
        "contentModeration": st.just({"publicFigureThreshold": "low"}),
    },
)


def written(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Write a manifest as other programs do."""
    out = io.StringIO(newline="")
    if suffix == "parquet":
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()
    if suffix.startswith("csv"):
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        for row in rows:
            cells = {n: json.dumps(v) if n in NESTED else v for n, v in row.items()}
            writer.writerow(cells)
    else:
        out.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    content = out.getvalue().encode()
    return gzip.compress(content) if suffix.endswith("gz") else content


def put(place: str, content: bytes | str) -> str:
    with fsspec.open(place, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())  # pyright: ignore[reportAttributeAccessIssue]
    return place


def checked(place: str) -> tuple[list[BatchItem], list[BadRow]]:
    return check_rows(read_rows(place), batch_keys("spring"))


def told(place: str) -> list[str]:
    return [str(row) for row in checked(place)[1]]


def refusal(place: str) -> str:
    with pytest.raises(InvalidManifest) as caught:
        read_rows(place)
    assert caught.value.rows == ()
    return caught.value.message


@pytest.fixture
def memory():
    """Return an empty object store in this process."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://in"


# One batch in every format


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(image_rows | video_rows, min_size=1, max_size=5, unique_by=lambda r: str(r["id"]))
)
def test_a_row_means_the_same_in_every_format(rows, memory):
    """Changing the format of a manifest neither repeats nor changes a purchase."""
    as_text = [{**row, "id": str(row["id"])} for row in rows]  # a column of Parquet has one type
    found = [
        checked(put(f"{memory}/rows.{suffix}", written(as_text, suffix))) for suffix in FORMATS
    ]
    found.append(checked(put(f"{memory}/rows.jsonl", written(rows, "jsonl"))))
    assert all(one == found[0] for one in found)
    items, bad = found[0]
    assert (len(items), bad) == (len(rows), [])
    assert [item.idempotency_key for item in items] == [f"spring/{row['id']}" for row in rows]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("form", ["path", "home", "file", "local", "memory"])
def test_a_manifest_is_read_from_wherever_it_is(form, suffix, tmp_path, memory, monkeypatch):
    """A manifest is read from a path or from any file system of fsspec."""
    monkeypatch.setenv("HOME", str(tmp_path))
    name = f"my #1 rows?.{suffix.upper()}"
    content = written([ROW], suffix)
    (tmp_path / name).write_bytes(content)
    place = {
        "path": name,
        "home": f"~/{name}",
        "file": f"file://{tmp_path}/{name.replace(' ', '%20')}",
        "local": f"local://{tmp_path}/{name}",
        "memory": put(f"{memory}/{name}", content),
    }[form]
    ((item,), bad) = checked(place)
    assert (item.id, item.request.prompt, bad) == ("a", ROW["promptText"], [])


async def test_a_signed_url_of_a_manifest_works_and_is_not_repeated():
    """The suffix is read before the query, and no message or traceback contains the query."""
    content = gzip.compress(json.dumps(ROW).encode())
    found = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content
    async with static_server(found) as (port, arrived):
        place = f"http://127.0.0.1:{port}/rows.jsonl.gz?sig=s3cr3t"
        assert [item.id for item in (await asyncio.to_thread(checked, place))[0]] == ["a"]
    assert arrived[0].startswith(b"GET /rows.jsonl.gz?sig=s3cr3t ")
    async with static_server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n") as (port, _):
        place = f"http://127.0.0.1:{port}/rows.jsonl.gz?sig=s3cr3t"
        with pytest.raises(InvalidManifest) as caught:
            await asyncio.to_thread(read_rows, place)
    assert "cannot be read: the file does not exist" in caught.value.message
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "s3cr3t" not in await asyncio.to_thread(refusal, place)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_picture_of_five_megabytes_fits_into_a_row(suffix, tmp_path):
    """A manifest row may carry everything that a request may carry."""
    source = f"data:image/png;base64,{base64.b64encode(bytes(5_000_000)).decode()}"
    place = tmp_path / f"rows.{suffix}"
    place.write_bytes(written([{"id": "a", "promptImage": source}], suffix))
    ((item,), bad) = checked(str(place))
    assert item.request.to_wire()["promptImage"] == source
    assert bad == []


# JSONL


def test_jsonl_may_have_a_mark_blank_lines_and_any_line_ends(tmp_path):
    """Byte order marks, blank lines and all line endings are accepted; line numbers stay right."""
    one, two = (
        json.dumps(ROW),
        json.dumps({**ROW, "id": "ü", "promptText": "a\u2028b\x85c"}, ensure_ascii=False),
    )
    place = tmp_path / "rows.jsonl"
    place.write_bytes(f"\ufeff{one}\r\n\r\n  \n{two}\n[]".encode())
    items, bad = checked(str(place))
    assert [item.id for item in items] == ["a", "ü"]
    assert items[1].request.prompt == "a\u2028b\x85c"
    assert [row.row for row in bad] == [5]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "line 2: is not valid JSON: Expecting property name"),
        (b'{"id": "b", "id": "c"}', "line 2: is not valid JSON: an object has a field twice"),
        (b'{"seed": -Infinity}', "line 2: is not valid JSON: NaN and Infinity are not allowed"),
        (
            b'{"seed": ' + b"9" * 5000 + b"}",
            "line 2: is not valid JSON: a number has too many digits",
        ),
        (b"[" * 100_000, "line 2: is not valid JSON: it is nested too deeply"),
        (b'["sk-s3cr3tT0ken"]', "line 2: is not a JSON object"),
        (b'sk-s3cr3tT0ken"', "line 2: is not valid JSON: Expecting value, at character 1"),
        (b"\xff\xfe{\x00", "line 2: is not valid JSON"),
        (
            b'{"id": "b", "promptImage": "https://a.de", "promptText": "caf\xe9"}',
            "line 2 (id b): promptText: must be text in valid Unicode (UTF-8)",
        ),
    ],
)
def test_a_broken_line_is_a_bad_row_and_the_others_are_read(tmp_path, line, problem):
    """One broken line does not hide the other rows."""
    place = tmp_path / "rows.jsonl"
    first = json.dumps({**ROW, "promptText": "é"}, ensure_ascii=False)
    place.write_bytes(f"{first}\n".encode() + line + b"\n" + b"{}\n")
    items, bad = checked(str(place))
    assert [item.id for item in items] == ["a"]
    assert str(bad[0]).startswith(problem)
    assert bad[-1].row == 3
    assert not any("s3cr3t" in str(row) for row in bad)


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", FORMATS)
def test_no_content_makes_reading_fail_otherwise(content, suffix, memory):
    """Reading any content gives rows or InvalidManifest."""
    place = put(f"{memory}/rows.{suffix}", b"id,promptImage\n" * suffix.startswith("csv") + content)
    try:
        rows = read_rows(place)
    except InvalidManifest:
        return
    items, bad = check_rows(rows, batch_keys("spring"))
    assert len(items) + len({row.row for row in bad}) == len(rows)


# CSV


def test_csv_rows_are_named_by_the_line_in_which_they_begin(tmp_path):
    """The line number leads to the row in an editor, even if prompts have several lines."""
    place = tmp_path / "rows.csv"
    place.write_bytes(
        b"\xef\xbb\xbf id ,promptImage,prompt_text,duration,x_sku\r\n"
        b"\r\n"
        b'a,https://a.de/1.jpg,"two\r\nlines",10,17\r\n'
        b",,,,\r\n"
        b"b,https://a.de/1.jpg,,7,\r\n"
        b"c,https://a.de/1.jpg,one\r\n"
        b"d,https://a.de/1.jpg,caf\xe9,5,caf\xe9\r\n"
        b"   \r\n"
        b"e,https://a.de/1.jpg,last,5,caf\xe9"
    )
    items, bad = checked(str(place))
    assert [item.id for item in items] == ["a", "e"]
    assert (items[0].request.prompt, items[0].request.to_wire()["duration"]) == (
        "two\r\nlines",
        10,
    )
    assert [str(row) for row in bad] == [
        "line 6 (id b): duration: 5 or 10 seconds, got 7",
        "line 7: has 3 cells, but the header has 5",
        "line 8 (id d): promptText: must be text in valid Unicode (UTF-8)",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,duraton\na,5", "column duraton: is not a field of a request; did you mean duration?"),
        ("id,promptImage,prompt_image\n", "column prompt_image: promptImage is given twice"),
        (",id\nb,a", "column 1 has no name, but a value in line 2; name it after a field"),
        ("id,\na,\nb,5\n", "column 2 has no name, but a value in line 3"),
        ("promptImage\nhttps://a.de", "the column id is missing"),
        ("id:promptImage\n", "column id:promptImage: is not a field of a request"),
        (
            "a,b,c,d,e,f,g\n",
            "column e: is not a field of a request; your own fields must begin with x_ or",
        ),
        ("a,b,c,d,e,f,g\n", "; and 3 more"),
        (f"{IMAGE}?sig=s3cr3t,1\n", "column https://example.com/cat.jpg?<sha256:"),
        ('id,promptImage\na,b\nc,"d', "the record that begins in line 3: unexpected end of data"),
        ('id,promptImage\na,"b"c\n', "not valid CSV: the record that begins in line 2"),
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("id,promptImage\n,\n", "has no rows"),
    ],
)
def test_a_csv_file_that_is_wrong_as_a_whole_is_told_once(tmp_path, content, problem):
    """An unknown column, which each row would ignore, is reported once."""
    place = tmp_path / "rows.csv"
    place.write_text(content, encoding="utf-8")
    assert problem in refusal(str(place))
    assert "s3cr3t" not in refusal(str(place))


# Parquet


def test_parquet_has_rows_types_and_gaps_of_its_own(tmp_path):
    """Nulls and NaN are missing values, nested columns are nested fields, and old text works."""
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int32()),
            "video_uri": pa.array([VIDEO.encode(), VIDEO.encode(), b"\xff"], pa.binary()),
            "promptText": pa.array(["a", "b", "c"]).dictionary_encode(),
            "seed": [7.0, float("nan"), None],
            "references": [[{"uri": IMAGE, "type": None}], None, None],
            "contentModeration": ['{"publicFigureThreshold": "low"}', None, None],
            "__index_level_0__": [0, 1, 2],
            "x_picture": [b"\xff", None, None],
        }
    )
    place = str(tmp_path / "rows.parquet")
    parquet.write_table(table, place)
    items, bad = checked(place)
    assert [item.request.to_wire() for item in items] == [
        {
            "videoUri": VIDEO,
            "promptText": "a",
            "model": "gen4_aleph",
            "seed": 7,
            "references": [{"type": "image", "uri": IMAGE}],
            "contentModeration": {"publicFigureThreshold": "low"},
        },
        {"videoUri": VIDEO, "promptText": "b", "model": "gen4_aleph"},
    ]
    assert [str(row) for row in bad] == [
        "row 3 (id 3): videoUri: must be text in valid Unicode (UTF-8)"
    ]


def test_an_unknown_parquet_column_is_told_once(tmp_path):
    """An unknown column is reported as in CSV, before any row is read."""
    place = str(tmp_path / "rows.parquet")
    parquet.write_table(pa.table({"id": ["a"], "durations": [5]}), place)
    assert "column durations: is not a field of a request; did you mean duration?" in refusal(place)
    parquet.write_table(pa.table({"id": pa.array([], pa.string())}), place)
    assert refusal(place) == f"{place} has no rows"


def test_without_pyarrow_a_parquet_file_names_what_to_install(tmp_path, monkeypatch):
    """The error names the extra as it is typed in the command."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    told_so = refusal(str(tmp_path / "rows.parquet"))
    assert told_so == 'Parquet needs pyarrow: pip install "prefect-cometapi[parquet]"'


# Unreadable files


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_that_is_not_there_is_told(suffix, tmp_path):
    """The error names the location, without a traceback of the file system."""
    assert refusal(str(tmp_path / f"no.{suffix}")).endswith(
        "cannot be read: the file does not exist"
    )


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.xyz", b"", "has no known format: its name must end in .jsonl, .ndjson or .csv"),
        ("rows", b"", "has no known format"),
        ("rows.parquet.gz", b"", "cannot be read: "),
        ("rows.jsonl.gz", b"{}", "cannot be read: Not a gzipped file"),
        ("rows.jsonl.gz", CUT_OFF, "cannot be read: Compressed file ended"),
        ("rows.parquet", b"PAR1", "cannot be read: "),
        ("rows.jsonl", b" \n", "has no rows"),
    ],
)
def test_a_file_that_is_no_manifest_is_told(tmp_path, name, content, problem):
    """The error gives the reason, where there is one."""
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name} {problem}" in refusal(str(tmp_path / name))


def test_a_folder_or_an_unknown_protocol_is_told(tmp_path):
    """The error says what the location is."""
    (tmp_path / "rows.csv").mkdir()
    assert refusal(str(tmp_path / "rows.csv")).endswith("is a folder without tables")
    assert "Protocol not known" in refusal("nosuch://me:s3cr3t@host/rows.csv")
    assert "s3cr3t" not in refusal("nosuch://me:s3cr3t@host/rows.csv")


def test_a_row_shows_nothing_of_what_it_holds():
    """A picture in a row does not appear in a traceback."""
    place = Path("rows.jsonl")
    place.write_text(json.dumps({**ROW, "promptImage": "data:image/png;base64,s3cr3t"}))
    assert "s3cr3t" not in repr(read_rows(str(place)))
