# SPDX-License-Identifier: Apache-2.0
"""The output manifest is complete at any moment and has the same content in each format."""

import json
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from prefect_cometapi.runway import StorageError, StorageUnavailable
from prefect_cometapi.runway.batch import results as module
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.batch.results import (
    MIN_WRITE_INTERVAL,
    WRITING_SHARE,
    check_location,
    next_write,
    publish_results,
    write_results,
)
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.fsspec import FsspecStorage
from prefect_cometapi.runway.storage.staging import INCOMING

from ...written_results import read_results

FORMATS = ["jsonl", "ndjson", "jsonl.gz", "parquet"]
STORED = ItemResult(
    id="a",
    outcome=Outcome.STORED,
    idempotency_key="spring/a",
    size=3_000_000_000,
    duration=5.04,
    submitted_at=datetime(2026, 11, 21, 9, 30, 0, 250, tzinfo=timezone(timedelta(hours=2))),
)
FAILED = ItemResult(id="b", outcome=Outcome.FAILED, message="it broke\nin two lines \u2028 ü")

some_time = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))])).filter(
    lambda time: 1 < time.year < 9999
)
BY_TYPE = {
    bool | None: st.none() | st.booleans(),
    str: st.text(max_size=20),
    Outcome: st.sampled_from(Outcome),
    str | None: st.none() | st.text(max_size=30),
    int | None: st.none() | st.integers(0, 2**63 - 1),
    float | None: st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
    ItemResult.model_fields["submitted_at"].annotation: st.none() | some_time,
}
any_results = st.lists(
    st.builds(
        ItemResult,
        **{name: BY_TYPE[info.annotation] for name, info in ItemResult.model_fields.items()},
    ),
    max_size=5,
)


@pytest.fixture
def memory():
    """Return an empty object store in this process."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://out"


# Content


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(results=any_results)
def test_what_was_written_is_read_again_whatever_it_is(results, memory):
    """Every text, number, time and missing value is read back, the same from each format."""
    for suffix in FORMATS:
        place = write_results(results, f"{memory}/results.{suffix}")
        assert read_results(place) == results


@given(half=st.text(st.characters(categories=["Cs", "Lu"]), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_half_a_character_costs_no_results(half, memory):
    """Text with invalid Unicode is written as well as possible."""
    results = [ItemResult(id="a", outcome=Outcome.FAILED, message=half)]
    read = [read_results(write_results(results, f"{memory}/r.{suffix}")) for suffix in FORMATS]
    assert read[0][0].id == "a"
    assert all(one == read[0] for one in read)
    kept = [letter for letter in half if letter.isupper()]
    assert [letter for letter in read[0][0].message or "" if letter.isupper()][: len(kept)] == kept


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("form", ["path", "home", "absolute", "file", "local", "memory"])
def test_results_are_written_to_wherever_they_are_wanted(
    form, suffix, tmp_path, memory, monkeypatch
):
    """Results are written to a path or any file system of fsspec; missing folders are made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    name = f"my #1 results.{suffix}"
    place = {
        "path": name,
        "home": f"~/new/{name}",
        "absolute": f"{tmp_path}/new/{name}",
        "file": f"file://{tmp_path}/new/{name.replace(' ', '%20')}",
        "local": f"local://{tmp_path}/new/{name}",
        "memory": f"{memory}/{name}",
    }[form]
    check_location(place)
    for results in ([STORED], [FAILED, STORED], []):
        written = write_results(results, place)
        assert read_results(place) == read_results(written) == results
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == (set() if form == "memory" else {name})


def test_each_line_of_jsonl_is_a_result_with_all_its_fields(tmp_path):
    """Other programs can read the file with one line of code, and each row has the same fields."""
    write_results([STORED, FAILED], f"{tmp_path}/results.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().split("\n")[:-1]]
    assert [row["id"] for row in rows] == ["a", "b"]
    assert rows[0]["submitted_at"] == "2026-11-21T09:30:00.000250+02:00"
    assert [set(row) for row in rows] == [set(ItemResult.model_fields)] * 2


def test_parquet_has_the_types_of_the_fields_even_without_a_value(tmp_path):
    """A batch without any success has the same columns as any other."""
    write_results([], f"{tmp_path}/results.parquet")
    types = {field.name: str(field.type) for field in parquet.read_schema("results.parquet")}
    assert set(types) == set(ItemResult.model_fields)
    assert (types["size"], types["polls"]) == ("int64", "int64")
    assert (types["duration"], types["waited"]) == ("double", "double")
    assert types["submitted_at"] == "timestamp[us, tz=UTC]"
    assert (types["id"], types["outcome"], types["message"]) == ("string",) * 3


def test_a_storage_of_any_kind_takes_results(memory):
    """A saved block, which is neither a path nor a URL, is accepted as well."""
    where = publish_results([STORED], FsspecStorage(memory), "results.jsonl")
    assert read_results(where) == [STORED]


# Atomic writes


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("form", ["path", "local"])
@pytest.mark.heavy
def test_who_reads_while_it_is_rewritten_sees_one_whole_state(form, suffix, tmp_path):
    """Each read gives a complete state, and never an older one than the read before."""
    place = f"{'local://' if form == 'local' else ''}{tmp_path}/results.{suffix}"
    states = 25
    seen: list[list[ItemResult]] = []
    trouble: list[Exception] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                seen.append(read_results(place))
            seen.append(read_results(place))
        except Exception as error:  # noqa: BLE001 - told by the test
            trouble.append(error)

    def state(number: int) -> list[ItemResult]:
        return [
            ItemResult(id=str(item), outcome=Outcome.STORED, polls=number)
            for item in range(1 + number * 10)
        ]

    write_results(state(0), place)
    reader = threading.Thread(target=look)
    reader.start()
    for number in range(1, states):
        write_results(state(number), place)
    done.set()
    reader.join()
    assert trouble == []
    numbers = [results[0].polls or 0 for results in seen]
    assert all(results == state(number) for results, number in zip(seen, numbers, strict=True))
    assert numbers == sorted(numbers)
    assert numbers[-1] == states - 1


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(suffix, tmp_path, monkeypatch):
    """A full disk costs the newest state for a while, but not the older ones."""
    place = f"{tmp_path}/results.{suffix}"
    write_results([STORED], place)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "to_json", full)
    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(
        StorageError, match=rf"results\.{suffix} could not be written to .*: No space left"
    ):
        write_results([STORED, FAILED], place)
    assert read_results(place) == [STORED]
    assert list((tmp_path / INCOMING).iterdir()) == []


def test_a_storage_that_takes_nothing_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    """A failed write leaves no files, so the next attempt starts clean."""

    def refuse(self: FolderStorage, staged: Path, name: str) -> str:
        raise StorageError(f"no room for {name}")

    monkeypatch.setattr(FolderStorage, "publish", refuse)
    with pytest.raises(StorageError, match=r"no room for results\.jsonl"):
        write_results([STORED], f"{tmp_path}/results.jsonl")
    assert list((tmp_path / INCOMING).iterdir()) == []


# Invalid locations


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (
            "out/results.csv",
            r"results\.csv is not possible: results are written as \.jsonl or \.parquet",
        ),
        ("out/results.xlsx", r"results\.xlsx has no known format"),
        ("out/", "has no known format"),
        (".", "has no known format"),
        ("memory://results.jsonl", "memory://results.jsonl is not a file in a folder"),
        ("s3://bucket/out/", "has no known format"),
        ("nosuch://host/results.jsonl", "nosuch://host cannot be used as a storage: Protocol"),
        ("ftp://me:s3cr3t@host/results.jsonl", "must not contain a password"),
    ],
)
def test_a_place_that_does_not_do_is_told_before_anything_is_bought(place, problem):
    """An invalid location for the results is refused before anything is bought."""
    with pytest.raises(StorageUnavailable, match=problem) as caught:
        check_location(place)
    assert "nothing was charged" in str(caught.value)
    with pytest.raises(StorageError):
        write_results([STORED], place)


def test_without_pyarrow_parquet_is_refused_before_anything_is_bought(tmp_path, monkeypatch):
    """The error names the package to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(StorageUnavailable, match=r'pip install "prefect-cometapi\[parquet\]"'):
        check_location(f"{tmp_path}/results.parquet")
    check_location(f"{tmp_path}/results.jsonl")


# Time of the writes


@given(
    gaps=st.lists(st.floats(0, 100), min_size=1, max_size=50),
    cost=st.floats(0, 30),
    share=st.floats(0.001, 0.5),
)
def test_writing_takes_no_more_than_its_share_of_the_time(gaps, cost, share):
    """Writing does not slow a batch, however slow the storage is and however many items it has."""
    clock, spent, due = 0.0, 0.0, 0.0
    for items, gap in enumerate(gaps, 1):
        clock += gap
        if clock >= due:
            assert spent <= share * clock + 1e-6
            took = cost * items
            clock += took
            spent += took
            due = next_write(clock, took, share)


@given(ended=st.floats(0, 1e9), took=st.floats(0, 1e4))
def test_a_growing_output_is_never_far_behind(ended, took):
    """After a quick write the next may follow in ten seconds, and after a slow one later."""
    due = next_write(ended, took)
    assert due >= ended + MIN_WRITE_INTERVAL
    assert due <= ended + MIN_WRITE_INTERVAL + took / WRITING_SHARE


def test_ten_thousand_items_are_not_written_ten_thousand_times():
    """The data written grows with the time of a batch, not with the square of its items."""
    clock, due, writes, rows = 0.0, 0.0, 0, 0
    for items in range(1, 10_001):
        clock += 0.5
        if clock >= due:
            writes, rows, took = writes + 1, rows + items, items * 20e-6
            due = next_write(clock + took, took)
    assert writes <= 10_000 * 0.5 / MIN_WRITE_INTERVAL + 1
    assert rows < 10_000 * 10_000 / 2 / 15
