# SPDX-License-Identifier: Apache-2.0
"""Rarer garbage collection, and its end."""

import gc

import pytest

from prefect_cometapi.flows.runtime.garbage_collection import (
    pause_collections,
    rarer_collections,
    resume_collections,
)


@pytest.fixture(autouse=True)
def thawed():
    """Begin without frozen objects, which an earlier test of this process may have left."""
    gc.unfreeze()


def test_the_process_gets_its_settings_back_after_the_last_of_several_blocks():
    """Two blocks that overlap change the collector once, and the last one restores it."""
    before = gc.get_threshold(), gc.get_freeze_count()
    first, second = rarer_collections(), rarer_collections()
    first.__enter__()
    during = gc.get_threshold()
    assert during[0] > before[0][0]
    assert gc.get_freeze_count() > before[1]
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == during
    second.__exit__(None, None, None)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_an_error_restores_the_settings_too():
    """A batch that fails leaves the collector as it was."""
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), rarer_collections():
        raise RuntimeError
    assert gc.get_threshold() == before


def test_collections_are_paused_only_while_modules_are_loaded():
    """The pause ends with the usual thresholds, and without a pause nothing is changed."""
    before = gc.get_threshold(), gc.get_freeze_count()
    resume_collections()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    pause_collections()
    try:
        assert gc.get_threshold()[0] > before[0][0]
        resume_collections()
        assert gc.get_threshold() == before[0]
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before[0])


def test_what_somebody_else_froze_stays_frozen():
    """A batch in a process that has frozen its objects leaves them so."""
    mine: list[object] = []
    gc.freeze()
    with rarer_collections():
        assert _is_frozen(mine)
    assert _is_frozen(mine)
    gc.unfreeze()
    assert not _is_frozen(mine)


def _is_frozen(thing: object) -> bool:
    # A count would not do: frozen objects that nobody needs any more leave it at any time.
    return not any(other is thing for other in gc.get_objects())
