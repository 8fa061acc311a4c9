# SPDX-License-Identifier: Apache-2.0
"""Log of the requests that a sandbox received."""

from collections import Counter, deque
from dataclasses import dataclass, field
from threading import Lock

MAX_REQUESTS = 100_000
"""Maximum number of requests to keep, so that a sandbox can run for weeks."""


@dataclass
class RecordedRequest:
    """Request that reached a sandbox.

    Attributes:
        method: ``GET``, ``POST``, ...
        path: Path without the query, which may contain a token.
        route: Route of a `Fault`, such as ``create``, or ``other``.
        headers: Headers with lower-case names; ``authorization`` is kept as received.
        at: Time of arrival, in seconds of `time.monotonic`.
        fault: Kind of the fault that was applied to it, if any.
        status: HTTP status of the answer; ``None`` if no answer was sent, or not yet.
        request_id: Value of the header ``X-Cometapi-Request-Id`` of the answer, if it has one.
    """

    method: str
    path: str
    route: str
    headers: dict[str, str] = field(repr=False)
    at: float
    fault: str | None = None
    status: int | None = None
    request_id: str = ""


class RequestLog:
    """Log of one sandbox's requests, numbered per route. Any thread may read it."""

    def __init__(self) -> None:
        self._requests: deque[RecordedRequest] = deque(maxlen=MAX_REQUESTS)
        self._per_route: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, request: RecordedRequest) -> int:
        """Record a request.

        Returns:
            Number of the request on its route, from 0.
        """
        with self._lock:
            self._requests.append(request)
            self._per_route[request.route] += 1
            return self._per_route[request.route] - 1

    @property
    def requests(self) -> list[RecordedRequest]:
        """Recorded requests in order; only the latest of very many are kept."""
        with self._lock:
            return list(self._requests)

    @property
    def per_route(self) -> dict[str, int]:
        """Number of requests on each route."""
        with self._lock:
            return dict(self._per_route)

    def clear(self) -> None:
        """Forget every request."""
        with self._lock:
            self._requests.clear()
            self._per_route.clear()
