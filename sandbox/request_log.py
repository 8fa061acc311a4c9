# SPDX-License-Identifier: Apache-2.0
"""What was asked of a sandbox, request by request."""

from collections import Counter, deque
from dataclasses import dataclass, field
from threading import Lock

LONGEST = 100_000
"""Requests that are kept, so that a sandbox can be left running for weeks."""


@dataclass
class RecordedRequest:
    """One request that reached a sandbox.

    Attributes:
        method: ``GET``, ``POST``, ...
        path: Path without the query, which may hold a token.
        route: ``create``, ``task``, ``feed``, ``asset``, or ``other``.
        headers: Names in lower case; ``authorization`` is kept as it came.
        at: Seconds on the clock of `time.monotonic`.
        fault: The kind of fault that befell it, if any.
        status: HTTP status of the answer; ``None`` where none was sent (yet).
    """

    method: str
    path: str
    route: str
    headers: dict[str, str] = field(repr=False)
    at: float
    fault: str | None = None
    status: int | None = None


class RequestLog:
    """All requests of one sandbox, numbered per route. Safe to read from any thread."""

    def __init__(self) -> None:
        self._requests: deque[RecordedRequest] = deque(maxlen=LONGEST)
        self._per_route: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, request: RecordedRequest) -> int:
        """Note a request.

        Returns:
            Its number on its route, from 0.
        """
        with self._lock:
            self._requests.append(request)
            self._per_route[request.route] += 1
            return self._per_route[request.route] - 1

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests, in order; of very many, the latest."""
        with self._lock:
            return list(self._requests)

    @property
    def per_route(self) -> dict[str, int]:
        """How many requests each route has seen."""
        with self._lock:
            return dict(self._per_route)

    def clear(self) -> None:
        """Forget every request."""
        with self._lock:
            self._requests.clear()
            self._per_route.clear()
