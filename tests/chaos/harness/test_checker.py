# SPDX-License-Identifier: Apache-2.0
"""Tests that the checker of the storm finds each kind of violation."""

from dataclasses import replace

import pytest

from .checker import Ending, Job, Row, Snapshot, ViolationKind, count, find_violations

STORED = Row("a", "stored", "id-a", {"a.mp4": "sha-a"}, frozenset({"a.jpg", "a.json"}))
FAILED = Row("b", "failed", "id-b")
UNCERTAIN = Row("c", "uncertain")
REJECTED = Row("d", "rejected")
FILES = {"a.mp4": "sha-a", "a.jpg": "sha-1", "a.json": "sha-2"}
CLEAN = Snapshot(
    keys=["a", "b", "c", "d"],
    jobs=[Job("id-a", "a", sha256="sha-a"), Job("id-b", "b", "failed"), Job("id-c", "c")],
    rows=[STORED, FAILED, UNCERTAIN, REJECTED],
    files=FILES,
    endings=[
        Ending("a", "ServiceUnavailable"),
        Ending("a"),
        Ending("b", "GenerationFailed"),
        Ending("c", "SubmissionUncertain"),
        Ending("d", "QuotaExceeded"),
    ],
    listed=frozenset({"c"}),
)
ALL_STORED = replace(CLEAN, keys=["a"], jobs=CLEAN.jobs[:1], rows=[STORED])


def kinds(found: Snapshot, *, decided: bool = False) -> set[ViolationKind]:
    return {violation.kind for violation in find_violations(found, decided=decided)}


def with_row(row: Row) -> Snapshot:
    rows = [row if row.key == old.key else old for old in CLEAN.rows]
    return replace(CLEAN, rows=rows)


def test_a_storm_that_ended_as_promised_is_clean():
    """Stored, failed, uncertain and refused generations are no violations."""
    assert find_violations(CLEAN) == []
    assert find_violations(ALL_STORED, decided=True) == []


def test_a_cancellation_may_be_reported_as_a_failure():
    """If the service has no word for a cancellation, its report of a failure is accepted."""
    cancelled = Job("id-b", "b", "cancelled")
    reported = replace(CLEAN, jobs=[CLEAN.jobs[0], cancelled, CLEAN.jobs[2]])
    assert find_violations(reported) == []
    rows = [STORED, Row("b", "cancelled", "id-b"), UNCERTAIN, REJECTED]
    assert kinds(replace(reported, rows=rows)) == {ViolationKind.LOST}
    endings = [*reported.endings, Ending("b", "GenerationCancelled")]
    assert find_violations(replace(reported, rows=rows, endings=endings)) == []


def test_a_generation_that_was_paid_twice_is_found():
    """Two accepted jobs of one key are a duplicate, whatever the ledger contains."""
    twice = replace(CLEAN, jobs=[*CLEAN.jobs, Job("id-x", "a", sha256="sha-a")])
    assert ViolationKind.DUPLICATE in kinds(twice)
    assert count(ViolationKind.DUPLICATE, find_violations(twice)) == 1


def test_an_entry_that_was_never_requested_is_found():
    """A second purchase is found even if it is recorded under another key."""
    rows = [*CLEAN.rows, Row("a+id-x", "submitted", "id-x")]
    jobs = [*CLEAN.jobs, Job("id-x", "a+id-x")]
    assert ViolationKind.DUPLICATE in kinds(replace(CLEAN, rows=rows, jobs=jobs))


@pytest.mark.parametrize(
    "lost",
    [
        replace(CLEAN, rows=[FAILED, UNCERTAIN, REJECTED], files={}),
        replace(with_row(Row("a", "submitted", "id-a")), files={}),
        replace(with_row(Row("a", "succeeded", "id-a")), files={}),
        replace(with_row(Row("a", "stored", "id-a")), files={}),
        with_row(replace(STORED, task_id="id-other")),
        with_row(Row("b", "rejected")),
        with_row(Row("b", "cancelled", "id-b")),
        with_row(Row("c", "rejected")),
        with_row(Row("d", "stored", "id-d")),
        replace(CLEAN, listed=frozenset()),
        replace(CLEAN, files={"a.jpg": "sha-1", "a.json": "sha-2"}),
        replace(CLEAN, files={"a.mp4": "sha-a", "a.jpg": "sha-1"}),
        replace(CLEAN, endings=[Ending("b")]),
        replace(CLEAN, endings=[Ending("b", "GenerationTimeout")]),
        replace(CLEAN, endings=[]),
    ],
    ids=[
        "not in the ledger",
        "never finished",
        "never fetched",
        "stored nowhere",
        "another id",
        "bought and called rejected",
        "another end than upstream",
        "uncertain and forgotten",
        "an id of no job",
        "uncertain and not listed",
        "the file is gone",
        "the description is gone",
        "failed and called well",
        "failed with another error",
        "failed and not reported",
    ],
)
def test_a_paid_generation_that_is_lost_is_found(lost):
    """Each way to lose a paid generation is found."""
    assert kinds(lost) == {ViolationKind.LOST}


@pytest.mark.parametrize(
    "damaged",
    [
        replace(CLEAN, files=FILES | {"a.mp4": "sha-of-another"}),
        with_row(replace(STORED, videos={"a.mp4": "sha-of-another"})),
    ],
    ids=["on the disk", "in the ledger"],
)
def test_a_wrong_file_is_found(damaged):
    """A stored file that differs from its job's clip or from the ledger's hash is found."""
    assert kinds(damaged) == {ViolationKind.WRONG_FILE}


@pytest.mark.parametrize(
    "more", [{"a.mp4.part": "sha-3"}, {"x.mp4": "sha-3"}, {"a.json": ""}, {"a.jpg": ""}]
)
def test_a_partial_or_unknown_file_is_found(more):
    """A temporary, incomplete or unknown file in the storage is found."""
    assert kinds(replace(CLEAN, files=FILES | more)) == {ViolationKind.PARTIAL_FILE}


def test_an_error_of_another_package_is_found():
    """A run that ended with an error of another package is found, even if it recovered."""
    endings = [Ending("a", "KeyError", typed=False, text="id"), *CLEAN.endings]
    assert kinds(replace(CLEAN, endings=endings)) == {ViolationKind.UNTYPED}


@pytest.mark.parametrize(
    "state", ["uncertain", "rejected", "submitted", "claimed", "resubmit_allowed"]
)
def test_an_unsettled_generation_is_found(state):
    """A generation that is not stored, failed or cancelled after the user's decisions is found."""
    found = replace(ALL_STORED, keys=["a", "z"], rows=[STORED, Row("z", state)])
    assert kinds(found) == set()
    assert kinds(found, decided=True) == {ViolationKind.UNSETTLED}


def test_a_generation_that_was_never_recorded_is_unsettled():
    """A key that is missing from the ledger counts as unsettled."""
    assert kinds(replace(ALL_STORED, keys=["a", "z"]), decided=True) == {ViolationKind.UNSETTLED}
