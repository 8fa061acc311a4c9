# SPDX-License-Identifier: Apache-2.0
"""Count the modules, functions and module borders that one ``image_to_video`` crosses.

    python benchmarks/call_path.py

It runs the flow once against the sandbox, with a profiler in every thread. A function counts once,
however often it is called. A border is a pair of modules of which one calls the other; calls that
reach the package through Prefect or httpx have no caller in it and count for no border.
"""

import os
import sys
import tempfile
import threading
from types import FrameType
from typing import Any

from service import sandbox_process

import prefect_cometapi

PACKAGE = f"{prefect_cometapi.__name__}."


class Way:
    """Code of the package that runs while the profiler is on."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.borders: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Note a call, if a function of the package is called."""
        module = str(frame.f_globals.get("__name__", ""))
        if event != "call" or not module.startswith(PACKAGE):
            return
        self.functions.add((module, frame.f_code.co_qualname))
        caller = frame.f_back.f_globals.get("__name__", "") if frame.f_back else ""
        if str(caller).startswith(PACKAGE) and caller != module:
            self.borders.add((str(caller), module))

    @property
    def modules(self) -> set[str]:
        """Modules of which at least one function ran."""
        return {module for module, _ in self.functions}


def main() -> None:
    """Run one clip and print what it crossed."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "PREFECT_HOME": f"{folder}/prefect",
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "COMETAPI_KEY": "benchmark",
            "COMETAPI_POLL_INTERVAL": "0.05",
            "COMETAPI_STORAGE": f"{folder}/videos",
            "COMETAPI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        }
        from prefect.testing.utilities import prefect_test_harness

        with sandbox_process() as url, prefect_test_harness(server_startup_timeout=120):
            os.environ["COMETAPI_BASE_URL"] = url
            from prefect_cometapi import ImageToVideoRequest, image_to_video

            request = ImageToVideoRequest(
                prompt_image="https://example.com/cat.jpg", prompt_text="slow zoom"
            )
            way = Way()
            threading.setprofile(way)  # threads that are made by the first run have it, too
            sys.setprofile(way)
            image_to_video(request, idempotency_key="warm")
            way.functions.clear()  # code that runs once per process is not the way
            way.borders.clear()
            image_to_video(request, idempotency_key="counted")
            sys.setprofile(None)
            threading.setprofile(None)
    print(f"modules {len(way.modules)}")
    print(f"functions {len(way.functions)}")
    print(f"module borders {len(way.borders)}")


if __name__ == "__main__":
    main()
