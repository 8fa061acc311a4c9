# SPDX-License-Identifier: Apache-2.0
"""Tests that the checker of the storm finds each kind of violation."""

from dataclasses import replace

import pytest

from .checker import Ending, Found, Job, Row, Wrong, count, violations

STORED = Row("a", "stored", "id-a", {"a.mp4": "sha-a"}, frozenset({"a.jpg", "a.json"}))
FAILED = Row("b", "failed", "id-b")
UNCERTAIN = Row("c", "uncertain")
REJECTED = Row("d", "rejected")
FILES = {"a.mp4": "sha-a", "a.jpg": "sha-1", "a.json": "sha-2"}
AS_PROMISED = Found(
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
ALL_STORED = replace(AS_PROMISED, keys=["a"], jobs=AS_PROMISED.jobs[:1], rows=[STORED])


def wrong(found: Found, *, decided: bool = False) -> set[Wrong]:
    return {violation.wrong for violation in violations(found, decided=decided)}


def with_row(row: Row) -> Found:
    rows = [row if row.key == old.key else old for old in AS_PROMISED.rows]
    return replace(AS_PROMISED, rows=rows)


def test_a_storm_that_ended_as_promised_is_clean():
    """Stored, failed, uncertain and refused generations are no violations."""
    assert violations(AS_PROMISED) == []
    assert violations(ALL_STORED, decided=True) == []


def test_a_cancellation_may_be_told_as_a_failure():
    """If the service has no word for a cancellation, its report of a failure is accepted."""
    cancelled = Job("id-b", "b", "cancelled")
    told = replace(AS_PROMISED, jobs=[AS_PROMISED.jobs[0], cancelled, AS_PROMISED.jobs[2]])
    assert violations(told) == []
    rows = [STORED, Row("b", "cancelled", "id-b"), UNCERTAIN, REJECTED]
    assert wrong(replace(told, rows=rows)) == {Wrong.LOST}
    endings = [*told.endings, Ending("b", "GenerationCancelled")]
    assert violations(replace(told, rows=rows, endings=endings)) == []


def test_a_generation_that_was_paid_twice_is_found():
    """Two accepted jobs of one key are a duplicate, whatever the ledger contains."""
    twice = replace(AS_PROMISED, jobs=[*AS_PROMISED.jobs, Job("id-x", "a", sha256="sha-a")])
    assert Wrong.DUPLICATE in wrong(twice)
    assert count(Wrong.DUPLICATE, violations(twice)) == 1


def test_an_entry_that_nobody_asked_for_is_found():
    """A second purchase is found even if it is recorded under another key."""
    rows = [*AS_PROMISED.rows, Row("a+id-x", "submitted", "id-x")]
    jobs = [*AS_PROMISED.jobs, Job("id-x", "a+id-x")]
    assert Wrong.DUPLICATE in wrong(replace(AS_PROMISED, rows=rows, jobs=jobs))


@pytest.mark.parametrize(
    "lost",
    [
        replace(AS_PROMISED, rows=[FAILED, UNCERTAIN, REJECTED], files={}),
        replace(with_row(Row("a", "submitted", "id-a")), files={}),
        replace(with_row(Row("a", "succeeded", "id-a")), files={}),
        replace(with_row(Row("a", "stored", "id-a")), files={}),
        with_row(replace(STORED, task_id="id-other")),
        with_row(Row("b", "rejected")),
        with_row(Row("b", "cancelled", "id-b")),
        with_row(Row("c", "rejected")),
        with_row(Row("d", "stored", "id-d")),
        replace(AS_PROMISED, listed=frozenset()),
        replace(AS_PROMISED, files={"a.jpg": "sha-1", "a.json": "sha-2"}),
        replace(AS_PROMISED, files={"a.mp4": "sha-a", "a.jpg": "sha-1"}),
        replace(AS_PROMISED, endings=[Ending("b")]),
        replace(AS_PROMISED, endings=[Ending("b", "GenerationTimeout")]),
        replace(AS_PROMISED, endings=[]),
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
        "failed and not told",
    ],
)
def test_a_paid_generation_that_is_lost_is_found(lost):
    """Each way to lose a paid generation is found."""
    assert wrong(lost) == {Wrong.LOST}


@pytest.mark.parametrize(
    "spoilt",
    [
        replace(AS_PROMISED, files=FILES | {"a.mp4": "sha-of-another"}),
        with_row(replace(STORED, videos={"a.mp4": "sha-of-another"})),
    ],
    ids=["on the disk", "in the ledger"],
)
def test_a_wrong_file_is_found(spoilt):
    """A stored file that differs from its job's clip or from the ledger's hash is found."""
    assert wrong(spoilt) == {Wrong.WRONG_FILE}


@pytest.mark.parametrize(
    "more", [{"a.mp4.part": "sha-3"}, {"x.mp4": "sha-3"}, {"a.json": ""}, {"a.jpg": ""}]
)
def test_what_is_visible_and_not_whole_is_found(more):
    """A temporary, incomplete or unknown file in the storage is found."""
    assert wrong(replace(AS_PROMISED, files=FILES | more)) == {Wrong.HALF_FILE}


def test_an_error_of_no_known_type_is_found():
    """A run that ended with an error of another package is found, even if it recovered."""
    endings = [Ending("a", "KeyError", typed=False, text="id"), *AS_PROMISED.endings]
    assert wrong(replace(AS_PROMISED, endings=endings)) == {Wrong.UNTYPED}


@pytest.mark.parametrize(
    "state", ["uncertain", "rejected", "submitted", "claimed", "resubmit_allowed"]
)
def test_what_is_unsettled_in_the_end_is_found(state):
    """A generation that is not stored, failed or cancelled after the user's decisions is found."""
    found = replace(ALL_STORED, keys=["a", "z"], rows=[STORED, Row("z", state)])
    assert wrong(found) == set()
    assert wrong(found, decided=True) == {Wrong.UNSETTLED}


def test_a_generation_that_was_never_recorded_is_unsettled():
    """A key that is missing from the ledger counts as unsettled."""
    assert wrong(replace(ALL_STORED, keys=["a", "z"]), decided=True) == {Wrong.UNSETTLED}
