# SPDX-License-Identifier: Apache-2.0
"""Stand-in for CometAPI's Runway routes that renders real clips and misbehaves on demand.

```python
from prefect_cometapi.sandbox import Sandbox

with Sandbox(faults=["create:reset-after"]) as sandbox:
    ...  # point a client at sandbox.url, with any API key
    assert len(sandbox.accepted) == 1
```

It needs neither an API key nor a network. It shares no code with `prefect_cometapi.runway`, so one
mistake cannot be in both the client and the service that the client is tested against. FastAPI,
uvicorn and FFmpeg load when the first name is used, not when this package is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.app import SandboxApp, create_app
    from .config import SandboxConfig
    from .faults.plan import Fault, FaultKind, FaultPlan, FaultRoute
    from .jobs import AcceptedJob
    from .messages.replies import ReplyShape
    from .request_log import RecordedRequest
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
    "Fault": "faults.plan",
    "FaultKind": "faults.plan",
    "FaultPlan": "faults.plan",
    "FaultRoute": "faults.plan",
    "RecordedRequest": "request_log",
    "ReplyShape": "messages.replies",
    "Sandbox": "server",
    "SandboxApp": "api.app",
    "SandboxConfig": "config",
    "create_app": "api.app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
