# SPDX-License-Identifier: Apache-2.0
"""Tests that the checker of the random walk finds each kind of violation."""

from dataclasses import replace

import pytest

from ..harness.checker import Row, ViolationKind
from .checker import FinalState, Permission, Purchase, find_violations, repeated_purchases

CLEAN = FinalState(
    keys=["a", "b", "c"],
    purchases=[
        Purchase("id-a", "a", sha256="sha-a", at=1.0),
        Purchase("id-b", "b", end="failed", sha256="sha-b", at=2.0),
        Purchase("id-c1", "c", sha256="sha-c1", at=3.0),
        Purchase("id-c2", "c", sha256="sha-c2", at=5.0),
    ],
    permissions=[Permission("c", at=4.0)],
    rows=[
        Row("a", "stored", "id-a", {"a.mp4": "sha-a"}, frozenset({"a.json"})),
        Row("b", "failed", "id-b"),
        Row("c", "stored", "id-c2", {"c.mp4": "sha-c2"}),
    ],
    files={"a.mp4": "sha-a", "a.json": "sha-1", "c.mp4": "sha-c2"},
)


def kinds(state: FinalState) -> set[ViolationKind]:
    return {violation.kind for violation in find_violations(state)}


def with_row(row: Row) -> FinalState:
    return replace(CLEAN, rows=[row if row.key == old.key else old for old in CLEAN.rows])


def test_a_walk_that_ended_as_promised_is_clean():
    """Stored and failed purchases, and one bought again with permission, are no violations."""
    assert find_violations(CLEAN) == []
    assert repeated_purchases(CLEAN) == 1


@pytest.mark.parametrize(
    "twice",
    [
        replace(CLEAN, permissions=[]),
        replace(CLEAN, permissions=[Permission("a", at=4.0)]),
        replace(CLEAN, permissions=[Permission("c", at=5.5)]),
        replace(CLEAN, purchases=[*CLEAN.purchases, Purchase("id-x", "a", at=9.0)]),
        replace(CLEAN, purchases=[*CLEAN.purchases, Purchase("id-x", "c", at=9.0)]),
    ],
    ids=["no permission", "permission for another key", "permission afterwards", "second", "third"],
)
def test_a_purchase_without_permission_is_found(twice):
    """A purchase beyond the first needs a permission that was given before."""
    assert ViolationKind.DUPLICATE in kinds(twice)


def test_a_late_permission_does_not_cover_an_early_purchase():
    """Of three purchases with two permissions, only the one before its permission is found."""
    more = [*CLEAN.purchases, Purchase("id-c3", "c", sha256="sha-c3", at=6.0)]
    found = find_violations(
        replace(CLEAN, purchases=more, permissions=[Permission("c", 4.0), Permission("c", 7.0)])
    )
    assert [str(one) for one in found if one.kind is ViolationKind.DUPLICATE] == [
        "duplicate: c was accepted 3 times, with 1 permissions"
    ]


@pytest.mark.parametrize(
    "lost",
    [
        replace(CLEAN, rows=CLEAN.rows[1:]),
        with_row(replace(CLEAN.rows[0], task_id="id-other")),
        replace(CLEAN, rows=[replace(CLEAN.rows[0], key="a+id-a"), *CLEAN.rows[1:]]),
        with_row(replace(CLEAN.rows[0], state="submitted")),
        with_row(replace(CLEAN.rows[0], state="failed")),
        with_row(replace(CLEAN.rows[0], videos={})),
        with_row(replace(CLEAN.rows[1], state="stored")),
        replace(CLEAN, files={"c.mp4": "sha-c2"}),
        replace(CLEAN, rows=CLEAN.rows[:2]),
        replace(CLEAN, integrity="row 3 missing from index"),
        replace(CLEAN, incomplete=["a backup lacks 3 of 9 purchases"]),
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
    assert ViolationKind.LOST in kinds(lost)


@pytest.mark.parametrize(
    "damaged",
    [
        replace(CLEAN, files={**CLEAN.files, "a.mp4": "sha-c2"}),
        with_row(replace(CLEAN.rows[0], videos={"a.mp4": "sha-c2"})),
    ],
    ids=["on the disk", "in the ledger"],
)
def test_the_video_of_another_purchase_is_found(damaged):
    """A stored file that is the video of another purchase is found."""
    assert ViolationKind.WRONG_FILE in kinds(damaged)


def test_a_second_purchase_may_have_a_key_of_its_own():
    """A second purchase that the ledger records is a duplicate, and neither of the two is lost."""
    twice = [*CLEAN.purchases, Purchase("id-a2", "a", sha256="sha-a", at=9.0)]
    second = replace(CLEAN.rows[0], key="a+id-a2", task_id="id-a2")
    found = kinds(replace(CLEAN, purchases=twice, rows=[*CLEAN.rows, second]))
    assert found == {ViolationKind.DUPLICATE}


@pytest.mark.parametrize("more", [{"a.jpg": ""}, {"x.mp4": "sha-of-half"}, {"a.json": ""}])
def test_a_partial_file_is_found(more):
    """A file in the storage that is cut off or that the service never served is found."""
    assert kinds(replace(CLEAN, files={**CLEAN.files, **more})) == {ViolationKind.PARTIAL_FILE}


@pytest.mark.parametrize("state", ["uncertain", "submitted", "written_off", "claimed"])
def test_an_unsettled_key_is_found(state):
    """A key that is neither stored nor failed after all decisions is found."""
    rows = [*CLEAN.rows, Row("d", state)]
    assert kinds(replace(CLEAN, keys=[*CLEAN.keys, "d"], rows=rows)) == {ViolationKind.UNSETTLED}


def test_an_error_of_another_package_is_found():
    """An actor that ended with an error of another package is found."""
    assert kinds(replace(CLEAN, untyped=["KeyError: id"])) == {ViolationKind.UNTYPED}
