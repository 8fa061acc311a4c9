# SPDX-License-Identifier: Apache-2.0
"""Tests that the checker of the random walk finds each kind of violation."""

from dataclasses import replace

import pytest

from ..fault_storm.checker import Row, Wrong
from .checker import Leave, Left, Purchase, doubles, violations

SOUND = Left(
    keys=["a", "b", "c"],
    purchases=[
        Purchase("id-a", "a", sha256="sha-a", at=1.0),
        Purchase("id-b", "b", end="failed", sha256="sha-b", at=2.0),
        Purchase("id-c1", "c", sha256="sha-c1", at=3.0),
        Purchase("id-c2", "c", sha256="sha-c2", at=5.0),
    ],
    leaves=[Leave("c", at=4.0)],
    rows=[
        Row("a", "stored", "id-a", {"a.mp4": "sha-a"}, frozenset({"a.json"})),
        Row("b", "failed", "id-b"),
        Row("c", "stored", "id-c2", {"c.mp4": "sha-c2"}),
    ],
    files={"a.mp4": "sha-a", "a.json": "sha-1", "c.mp4": "sha-c2"},
)


def wrong(left: Left) -> set[Wrong]:
    return {violation.wrong for violation in violations(left)}


def with_row(row: Row) -> Left:
    return replace(SOUND, rows=[row if row.key == old.key else old for old in SOUND.rows])


def test_a_walk_that_ended_as_promised_is_clean():
    """Stored and failed purchases, and one that was bought again with leave, are no violations."""
    assert violations(SOUND) == []
    assert doubles(SOUND) == 1


@pytest.mark.parametrize(
    "twice",
    [
        replace(SOUND, leaves=[]),
        replace(SOUND, leaves=[Leave("a", at=4.0)]),
        replace(SOUND, leaves=[Leave("c", at=5.5)]),
        replace(SOUND, purchases=[*SOUND.purchases, Purchase("id-x", "a", at=9.0)]),
        replace(SOUND, purchases=[*SOUND.purchases, Purchase("id-x", "c", at=9.0)]),
    ],
    ids=["no leave", "leave for another key", "leave afterwards", "second", "third"],
)
def test_a_purchase_that_nobody_allowed_is_found(twice):
    """A purchase beyond the first needs a leave that was given before."""
    assert Wrong.DUPLICATE in wrong(twice)


def test_a_late_leave_is_no_excuse_for_an_early_purchase():
    """Of three purchases with two leaves, only the one before its leave is found."""
    more = [*SOUND.purchases, Purchase("id-c3", "c", sha256="sha-c3", at=6.0)]
    found = violations(replace(SOUND, purchases=more, leaves=[Leave("c", 4.0), Leave("c", 7.0)]))
    assert [str(one) for one in found if one.wrong is Wrong.DUPLICATE] == [
        "duplicate: c was accepted 3 times, with 1 leaves"
    ]


@pytest.mark.parametrize(
    "lost",
    [
        replace(SOUND, rows=SOUND.rows[1:]),
        with_row(replace(SOUND.rows[0], task_id="id-other")),
        replace(SOUND, rows=[replace(SOUND.rows[0], key="a+id-a"), *SOUND.rows[1:]]),
        with_row(replace(SOUND.rows[0], state="submitted")),
        with_row(replace(SOUND.rows[0], state="failed")),
        with_row(replace(SOUND.rows[0], videos={})),
        with_row(replace(SOUND.rows[1], state="stored")),
        replace(SOUND, files={"c.mp4": "sha-c2"}),
        replace(SOUND, rows=SOUND.rows[:2]),
        replace(SOUND, integrity="row 3 missing from index"),
        replace(SOUND, incomplete=["a backup lacks 3 of 9 purchases"]),
    ],
    ids=[
        "no row",
        "another id",
        "another name",
        "never finished",
        "called failed",
        "stored nowhere",
        "called stored",
        "file gone",
        "neither of two",
        "damaged database",
        "incomplete copy",
    ],
)
def test_a_purchase_that_is_lost_is_found(lost):
    """Each way to lose a purchase is found."""
    assert Wrong.LOST in wrong(lost)


@pytest.mark.parametrize(
    "spoilt",
    [
        replace(SOUND, files={**SOUND.files, "a.mp4": "sha-c2"}),
        with_row(replace(SOUND.rows[0], videos={"a.mp4": "sha-c2"})),
    ],
    ids=["on the disk", "in the ledger"],
)
def test_the_video_of_another_purchase_is_found(spoilt):
    """A stored file that is the video of another purchase is found."""
    assert Wrong.WRONG_FILE in wrong(spoilt)


def test_a_second_purchase_may_have_a_name_of_its_own():
    """A second purchase that the ledger records is a duplicate, and neither of the two is lost."""
    twice = [*SOUND.purchases, Purchase("id-a2", "a", sha256="sha-a", at=9.0)]
    second = replace(SOUND.rows[0], key="a+id-a2", task_id="id-a2")
    found = wrong(replace(SOUND, purchases=twice, rows=[*SOUND.rows, second]))
    assert found == {Wrong.DUPLICATE}


@pytest.mark.parametrize("more", [{"a.jpg": ""}, {"x.mp4": "sha-of-half"}, {"a.json": ""}])
def test_a_half_file_is_found(more):
    """A file in the storage that is cut off or that the service never served is found."""
    assert wrong(replace(SOUND, files={**SOUND.files, **more})) == {Wrong.HALF_FILE}


@pytest.mark.parametrize("state", ["uncertain", "submitted", "written_off", "claimed"])
def test_what_is_unsettled_in_the_end_is_found(state):
    """A key that is neither stored nor failed after all decisions is found."""
    rows = [*SOUND.rows, Row("d", state)]
    assert wrong(replace(SOUND, keys=[*SOUND.keys, "d"], rows=rows)) == {Wrong.UNSETTLED}


def test_an_error_of_no_known_type_is_found():
    """An actor that ended with an error of another package is found."""
    assert wrong(replace(SOUND, untyped=["KeyError: id"])) == {Wrong.UNTYPED}
