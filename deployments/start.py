# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command ``prefect-cometapi``."""

from ..flows.runtime.garbage_collection import pause_collections


def main() -> None:
    """Load and run the command line."""
    pause_collections()
    from .cli import main as run

    run()
