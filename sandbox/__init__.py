# SPDX-License-Identifier: Apache-2.0
"""A stand-in for CometAPI's Runway routes that renders real clips and misbehaves on demand.

```python
from prefect_cometapi.sandbox import Sandbox

with Sandbox(faults=["create:reset-after"]) as sandbox:
    ...  # point a client at sandbox.url, with any key
    assert len(sandbox.accepted) == 1
```

It needs neither a key nor a network. It shares no code with `prefect_cometapi.runway`, so that the
client and the service it is tested with cannot be wrong together. FastAPI, uvicorn and FFmpeg are
loaded when the first name is used, not when this package is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import SandboxApp, create_app
    from .config import SandboxConfig
    from .faults import Fault, FaultKind, FaultPlan, FaultRoute
    from .jobs import AcceptedJob
    from .records import RecordedRequest
    from .replies import ReplyShape
    from .server import Sandbox

__all__ = [
    "AcceptedJob",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FaultRoute",
    "RecordedRequest",
    "ReplyShape",
    "Sandbox",
    "SandboxApp",
    "SandboxConfig",
    "create_app",
]

_HOMES = {
    "AcceptedJob": "jobs",
    "Fault": "faults",
    "FaultKind": "faults",
    "FaultPlan": "faults",
    "FaultRoute": "faults",
    "RecordedRequest": "records",
    "ReplyShape": "replies",
    "Sandbox": "server",
    "SandboxApp": "app",
    "SandboxConfig": "config",
    "create_app": "app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
