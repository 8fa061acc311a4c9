# SPDX-License-Identifier: Apache-2.0
"""Tables as spreadsheets, data frames and web addresses give them."""

import asyncio
import csv
import gzip
import io
import json
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from prefect_cometapi.flows import generate_batch
from prefect_cometapi.flows.batch.plan import Reading, make_plan
from prefect_cometapi.runway import InvalidManifest
from prefect_cometapi.runway.batch.manifest import read_rows
from prefect_cometapi.runway.batch.rows import batch_keys, check_rows, rows_of
from prefect_cometapi.runway.batch.table_files import FileFormat

from ..runway.static_server import static_server

IMAGE = "https://example.com/cat.jpg"
NAN = float("nan")


class _Missing:
    """Value that compares with nothing, as NA of pandas."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


NA = type("NAType", (_Missing,), {})()
NAT = type("NaTType", (datetime,), {})(2026, 11, 29)


def frame(rows: str, delimiter: str = ",") -> str:
    return f"id,promptImage,promptText,duration\n{rows}".replace(",", delimiter)


def wire(place: Any, **reading: str) -> list[tuple[str, dict[str, Any]]]:
    """Return id and body of each row, none of which is bad."""
    plan = make_plan(str(place), "spring", Reading(**reading))
    assert plan.bad == []
    return [(item.id, item.request.to_wire()) for item in plan.items]


def prompts(place: Any, **reading: str) -> list[str]:
    return [body["promptText"] for _, body in wire(place, **reading)]


def refusal(place: Any, **options: Any) -> str:
    with pytest.raises(InvalidManifest) as caught:
        read_rows(str(place), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", frame("a,https://example.com/cat.jpg,zoom,10\n", ";")),
        ("rows.csv", "sep=;\r\n" + frame("a,https://example.com/cat.jpg,zoom,10\r\n", ";")),
        ("rows.csv", '"sep=|"\n' + frame("a,https://example.com/cat.jpg,zoom,10\n", "|")),
        ("rows.tsv", frame("a,https://example.com/cat.jpg,zoom,10\n", "\t")),
        ("rows.csv", frame("a,https://example.com/cat.jpg,zoom,10\n", "\t")),
        ("rows.txt", frame("a,https://example.com/cat.jpg,zoom,10\n", "\t")),
        ("rows.csv", frame("a,https://example.com/cat.jpg,zoom,10\n", "|")),
        ("rows.csv", "\n\n" + frame("a,https://example.com/cat.jpg,zoom,10\n", ";")),
        ("rows.csv", 'id;"promptImage";promptText;duration;x_a\n"a";' + IMAGE + ";zoom;10;1,5\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_table_that_excel_saved(tmp_path, name, text, encoding):
    """Excel saves CSV with semicolons, tabs or UTF-16; all of them are read as they are."""
    place = tmp_path / name
    place.write_bytes(text.encode(encoding))
    ((id_, body),) = wire(place)
    assert (id_, body["promptText"], body["duration"]) == ("a", "zoom", 10)


def test_a_table_in_windows_1252(tmp_path):
    """A CSV file of Windows is refused once, with the option that reads it, which then does."""
    place = tmp_path / "rows.csv"
    place.write_bytes(frame(f"a,{IMAGE},Café,5\nb,{IMAGE},Über,5\n").encode("windows-1252"))
    told = refusal(place)
    assert f"{place} is not in UTF-8 (line 2): export it as CSV UTF-8, or name its" in told
    assert "--encoding windows-1252 on the command line, manifest_encoding in a flow" in told
    assert "Money: nothing was charged." in told
    assert prompts(place, encoding="windows-1252") == ["Café", "Über"]
    assert "the encoding 'ansi' is not known: write, for example" in refusal(place, encoding="ansi")
    assert "the encoding 'hex' is not known" in refusal(place, encoding="hex")
    assert "is not in its encoding: UTF-16 stream" in refusal(place, encoding="utf-16")


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1"])
def test_a_named_encoding_that_is_wrong_is_not_bought(tmp_path, encoding):
    """UTF-8 read as Windows-1252 would be paid for as "CafÃ©", so it is refused."""
    place = tmp_path / "rows.csv"
    place.write_text(frame(f"a,{IMAGE},Café,5\n"), encoding="utf-8")
    assert "is in UTF-8 and not in" in refusal(place, encoding=encoding)
    place.write_text(frame(f"a,{IMAGE},Café,5\n"), encoding="utf-8-sig")
    assert prompts(place, encoding=encoding) == ["Café"]  # its mark is certain


def test_jsonl_of_a_windows_program(tmp_path):
    """JSONL in Windows-1252 is one problem; from PowerShell, which writes UTF-16, it is read."""
    rows = [{"id": str(n), "promptImage": IMAGE, "promptText": "Café"} for n in range(2)]
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\r\n" for row in rows)
    place = tmp_path / "rows.jsonl"
    place.write_bytes(text.encode("utf-16"))
    assert prompts(place) == ["Café", "Café"]
    place.write_bytes(text.encode("windows-1252"))
    assert "rows.jsonl is not in UTF-8 (line 1)" in refusal(place)
    assert prompts(place, encoding="cp1252") == ["Café", "Café"]


def test_the_empty_columns_and_rows_of_a_spreadsheet(tmp_path):
    """Columns and rows that Excel exports without any content have no effect."""
    place = tmp_path / "rows.csv"
    place.write_text(
        f"id,promptImage,promptText,,x_note,,\na,{IMAGE},zoom,,,,\nb,{IMAGE},pan,,n\n"
        f"c,{IMAGE},tilt,,n,,,,\n,,,,,,\n,,\n \n",
        encoding="utf-8",
    )
    assert prompts(place) == ["zoom", "pan", "tilt"]
    place.write_text(f"id,promptImage,promptText,\na,{IMAGE},zoom,5\n", encoding="utf-8")
    assert "column 4 has no name, but a value in line 2" in refusal(place)


def test_the_index_of_a_data_frame(tmp_path):
    """`to_csv()` without `index=False` adds a first column without a name, which is ignored."""
    place = tmp_path / "rows.csv"
    text = f",id,promptImage\n0,a,{IMAGE}\n7,b,{IMAGE}\n"
    for header in ("", "Unnamed: 0"):
        place.write_text(header + text, encoding="utf-8")
        assert [id_ for id_, _ in wire(place)] == ["a", "b"]
    place.write_text(text.replace("7,b", "0,b"), encoding="utf-8")
    assert "column 1 has no name, but a value in line 3" in refusal(place)
    plan = rows_of([{"Unnamed: 0": 0, "Unnamed: 9": NAN, "": None, "promptImage": IMAGE}])
    items, bad = check_rows(plan, batch_keys("spring"))
    assert (len(items), bad) == (1, [])
    assert check_rows(rows_of([{"": 5, "promptImage": IMAGE}]), batch_keys("spring"))[1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_blanks_around_names_and_values(tmp_path, suffix):
    """Blanks after commas belong neither to a name nor to a value, in any format."""
    place = tmp_path / f"rows.{suffix}"
    row = {
        " id": " a ",
        " promptImage": f" {IMAGE}",
        "promptText ": "\xa0zoom, slow ",
        "seed": "7 ",
    }
    if suffix == "csv":
        text = f'id, promptImage , promptText, seed\n a , {IMAGE}, "zoom, slow ", 7 \n'
        place.write_text(text, encoding="utf-8")
    elif suffix == "jsonl":
        place.write_text(json.dumps(row), encoding="utf-8")
    else:
        parquet.write_table(pa.Table.from_pylist([row]), place)
    ((id_, body),) = wire(place)
    assert (id_, body["promptText"], body["seed"]) == ("a", "zoom, slow", 7)


@pytest.mark.parametrize(
    "header", ['"id" ; "promptImage" ; "promptText"', "id ;promptImage;promptText"]
)
def test_blanks_after_quotes(tmp_path, header):
    """Blanks between a quote and the next delimiter do not count, as in the header."""
    place = tmp_path / "rows.csv"
    place.write_text(f'{header}\n"a" ; "{IMAGE}" ; "slow; ""soft"" "  \n', encoding="utf-8")
    assert prompts(place) == ['slow; "soft"']


def test_one_json_object_over_several_lines(tmp_path):
    """A pretty-printed object is one problem, and not one of each line."""
    place = tmp_path / "rows.json"
    place.write_text(json.dumps({"id": 1, "promptImage": IMAGE}, indent=2), encoding="utf-8")
    assert "has one object over several lines: write each in one line" in refusal(place)


def test_an_id_that_pandas_made_a_float(tmp_path):
    """A column of numbers with a gap has 7.0 for 7; both are the same purchase."""
    place = tmp_path / "rows.csv"
    place.write_text(f"id,promptImage,duration\n7.0,{IMAGE},5.0\n", encoding="utf-8")
    assert make_plan(str(place), "spring").items[0].idempotency_key == "spring/7"
    place.write_text(f"id,promptImage\n7,{IMAGE}\n7.0,{IMAGE}\n", encoding="utf-8")
    (bad,) = make_plan(str(place), "spring").bad
    assert str(bad) == "line 3 (id 7.0): id: results in the same idempotency key as line 2"
    table = pa.table({"id": [7.0, 8.0], "promptImage": [IMAGE] * 2, "duration": [5.0, NAN]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert [id_ for id_, _ in wire(tmp_path / "rows.parquet")] == ["7", "8"]


@pytest.mark.parametrize("missing", [None, NAN, Decimal("nan"), NA, NAT])
def test_a_missing_value_of_a_data_frame(missing):
    """NaN, NaT and NA in a list of dicts mean that the field is not set."""
    row = {"id": 7.0, "promptImage": IMAGE, "promptText": missing, "seed": missing}
    nested = {
        "id": "v",
        "videoUri": "https://example.com/cat.mp4",
        "promptText": "zoom",
        "references": [{"type": "image", "uri": IMAGE, "tag": missing}],
    }
    items, bad = check_rows(rows_of([row, nested, {**row, "id": missing}]), batch_keys("spring"))
    assert bad == []
    assert [item.id for item in items] == ["7", "v", "3"]
    assert "promptText" not in items[0].request.to_wire()
    assert items[1].request.to_wire()["references"] == [{"type": "image", "uri": IMAGE}]


def test_values_of_numpy():
    """Scalars and arrays of NumPy count as the values of Python that they hold."""
    scalar = type("int64", (SimpleNamespace,), {"__module__": "numpy"})
    row = {
        "id": scalar(tolist=lambda: 7),
        "videoUri": "https://example.com/cat.mp4",
        "promptText": "zoom",
        "references": scalar(tolist=lambda: [{"type": "image", "uri": IMAGE}]),
    }
    (item,), bad = check_rows(rows_of([row]), batch_keys("spring"))
    assert (item.id, bad) == ("7", [])


@pytest.mark.parametrize("text", ["nan", "NaN", "#N/A", "#REF!", "<NA>"])
def test_the_text_of_a_missing_value_is_not_bought(text):
    """A prompt "nan", which a data frame wrote for an empty cell, is refused and not paid for."""
    row = {"id": "a", "promptImage": IMAGE, "promptText": text}
    items, (bad,) = check_rows(rows_of([row]), batch_keys("spring"))
    assert items == []
    assert bad.field == "promptText"
    assert f"is {text}, as spreadsheets and data frames write a missing value" in bad.problem


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows"])
def test_json_of_a_data_frame(tmp_path, name):
    """`to_json(orient="records")` writes one array, and json.dumps writes NaN."""
    rows = [{"id": 1, "promptImage": IMAGE, "seed": NAN}, {"id": 2.0, "promptImage": IMAGE}]
    place = tmp_path / name
    place.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    assert [id_ for id_, _ in wire(place)] == ["1", "2"]
    place.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert [id_ for id_, _ in wire(place)] == ["1", "2"]
    place.write_text(json.dumps([*rows, 5]), encoding="utf-8")
    (bad,) = make_plan(str(place), "spring").bad
    assert str(bad) == "row 3: is not a JSON object"
    place.write_text("[{]", encoding="utf-8")
    assert f"{place} is not valid JSON" in refusal(place)


def test_a_json_array_without_end_is_not_read(tmp_path, monkeypatch):
    """An array is read as a whole, so its size is limited."""
    monkeypatch.setattr("prefect_cometapi.runway.batch.manifest.MAX_ARRAY_LENGTH", 1000)
    place = tmp_path / "rows.json.gz"
    place.write_bytes(gzip.compress(b"[" + b" " * 100_000))
    assert "is one JSON array of more than 1,000 characters: write it as JSONL" in refusal(place)


def test_a_folder_of_parquet_parts(tmp_path):
    """The parts that Spark and Dask write into a folder are one manifest."""
    folder = tmp_path / "rows.parquet"
    (folder / "x_team=web" / "duration=10").mkdir(parents=True)
    (folder / "x_team=web" / "duration=__HIVE_DEFAULT_PARTITION__").mkdir()
    for name, ids in (
        ("part-00001.parquet", [3]),
        ("part-00000.snappy.parquet", [1, 2]),
        ("x_team=web/duration=10/part-0.parquet", [4]),
        ("x_team=web/duration=__HIVE_DEFAULT_PARTITION__/part-0.parquet", [5]),
    ):
        parquet.write_table(pa.table({"id": ids, "promptImage": [IMAGE] * len(ids)}), folder / name)
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.crc").write_bytes(b"crc")
    found = wire(f"{folder}/")
    assert [id_ for id_, _ in found] == ["1", "2", "3", "4", "5"]
    assert [body.get("duration") for _, body in found][2:] == [None, 10, None]
    assert (
        make_plan(f"{folder}/", None).idempotency_key
        == make_plan(str(folder), None).idempotency_key
    )
    assert [row.number for row in read_rows(f"file://{folder}")] == [1, 2, 3, 4, 5]
    (folder / "_delta_log").mkdir()
    assert "as in a table of Delta, which is not read: write its rows" in refusal(folder)


def test_a_folder_of_other_parts(tmp_path):
    """Parts in CSV have a header each; a part with another column is named."""
    for number, id_ in enumerate("ab"):
        (tmp_path / f"part-{number}.csv").write_text(f"id,promptImage\n{id_},{IMAGE}\n")
    assert [id_ for id_, _ in wire(tmp_path)] == ["a", "b"]
    (tmp_path / "part-1.csv").write_text(f"id,promptImage\nb,{IMAGE},c\n")
    assert [str(row) for row in make_plan(str(tmp_path), "k").bad] == [
        "row 2: has 3 cells, but the header has 2"
    ]
    (tmp_path / "part-1.csv").write_text(f"id,colour\nb,{IMAGE}\n")
    assert "/part-1.csv cannot be used: column colour: is not a field" in refusal(tmp_path)


def reply(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def sheet(*rows: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "promptImage"], *([row, IMAGE] for row in rows)])
    return out.getvalue().encode()


def of_parquet() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"id": ["a"], "promptImage": [IMAGE]}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (sheet("a"), ["content-type: text/csv"]),
        (sheet("a"), ["content-type: application/octet-stream"]),
        (sheet("a"), []),
        (sheet("a"), ['content-disposition: attachment; filename="Sheet 1.csv"']),
        (gzip.compress(sheet("a"), mtime=0), ["content-type: text/csv", "content-encoding: gzip"]),
        (gzip.compress(sheet("a"), mtime=0), ["content-type: binary/octet-stream"]),
        (json.dumps({"id": "a", "promptImage": IMAGE}).encode(), ["content-type: text/plain"]),
        (of_parquet(), ["content-type: binary/octet-stream"]),
    ],
)
async def test_an_address_without_suffix(content, headers):
    """The address of a Google sheet, or a presigned one, is told by its type or its content."""
    async with static_server(reply(content, *headers)) as (port, arrived):
        place = f"http://127.0.0.1:{port}/d/1x/export?format=csv&sig=s3cr3t"
        rows = await asyncio.to_thread(read_rows, place)
    assert [row.fields["id"] for row in rows] == ["a"]
    assert arrived[0].startswith(b"GET ")  # a presigned address does not allow HEAD


async def test_a_format_that_is_named(tmp_path):
    """`--format` reads a file whose name and content do not say what it is."""
    async with static_server(reply(b"a\tb\n")) as (port, _):
        told = await asyncio.to_thread(refusal, f"http://127.0.0.1:{port}/x?sig=s3cr3t")
    assert "has no known format" in told
    assert "--format csv on the command line, manifest_format in a flow" in told
    assert "s3cr3t" not in told
    place = tmp_path / "rows.dat"
    place.write_text(f"x_a;id;promptImage\n1;a;{IMAGE}\n")
    assert wire(place, file_format="csv") == wire(place)
    assert "line 1: is not valid JSON" in str(make_plan(str(place), "k", Reading("jsonl")).bad[0])
    assert "cannot be read" in refusal(place, file_format=FileFormat.PARQUET)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (reply(b"<!doctype html>", "content-type: text/html"), "is a web page or XML, not a table"),
        (reply(b"", status="403 Forbidden"), "HTTP 403. Its signature may have expired, or it"),
        (reply(b"", status="410 Gone"), "the file does not exist (HTTP 410)"),
        (reply(b"", status="503 Busy"), "cannot be read: HTTP 503"),
        (b"nonsense\r\n\r\n", "cannot be read: "),
    ],
)
async def test_an_address_that_gives_no_table(answer, problem):
    """A login page or an expired address is named once, without its signature."""
    async with static_server(answer) as (port, _):
        place = f"http://127.0.0.1:{port}/rows.csv?sig=s3cr3t"
        told = await asyncio.to_thread(refusal, place)
    assert problem in told
    assert "s3cr3t" not in told


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04xl", "an Excel or OpenDocument workbook, which is not read: export it as CSV"),
        (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
@pytest.mark.parametrize("name", ["rows.xlsx", "rows.csv", "rows"])
def test_a_workbook_is_named(tmp_path, name, content, what):
    """An Excel workbook is refused by what it is, whatever its name is."""
    place = tmp_path / name
    place.write_bytes(content)
    assert f"{place} is {what}" in refusal(place)


def test_a_misspelt_field_is_told_once(tmp_path):
    """The same problem in each of 500 lines is one line of the error, with the number of rows."""
    place = tmp_path / "rows.jsonl"
    rows = [{"id": n, "promptImage": IMAGE, "color": "red"} for n in range(500)]
    place.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    told = str(InvalidManifest("no row is valid", rows=make_plan(str(place), "k").bad))
    assert told.count("color") == 1
    assert "line 1 (id 0), line 2 (id 1), line 3 (id 2) and 497 more: color: is not a field" in told


@pytest.mark.server
def test_the_rows_of_a_data_frame_in_a_flow(prefect_server, sandbox):
    """`generate_batch(frame.to_dict("records"))` runs, although JSON has no NaN."""
    row = {"id": 7.0, "promptImage": IMAGE, "promptText": NAN, "duration": 5.0, "seed": NAN}
    result = generate_batch([row, {**row, "id": 8.0, "seed": NA, "promptText": NAT}])
    assert [(item.id, item.outcome) for item in result.results] == [
        ("7", "stored"),
        ("8", "stored"),
    ]


@pytest.mark.server
def test_a_table_of_windows_in_a_flow(prefect_server, sandbox, tmp_path):
    """The parameters of a deployment name format and encoding of the manifest."""
    place = tmp_path / "export.dat"
    place.write_bytes(frame(f"a,{IMAGE},Café,5\n", ";").encode("windows-1252"))
    result = generate_batch(
        str(place),
        manifest_format="csv",
        manifest_encoding="windows-1252",
        idempotency_key="spring",
    )
    assert [item.prompt for item in result.results] == ["Café"]
    assert result.succeeded == 1
