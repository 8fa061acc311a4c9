# SPDX-License-Identifier: Apache-2.0
"""Garbage collection of a command, which waits until the modules are loaded.

Python looks for garbage after each few hundred new objects. Modules create a million that stay, so
these collections are a sixth of the time until a command can begin.
"""

import gc

_USUAL = gc.get_threshold()
_SELDOM = 200_000
"""Objects between two collections while modules are loaded."""


def pause_collections() -> None:
    """Look for garbage so seldom that the modules of a command are loaded without."""
    gc.set_threshold(_SELDOM)


def resume_collections() -> None:
    """Return to the usual collections after a pause; they skip all that was loaded until now."""
    if gc.get_threshold()[0] == _SELDOM:
        gc.freeze()
        gc.set_threshold(*_USUAL)
