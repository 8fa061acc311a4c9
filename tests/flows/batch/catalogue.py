# SPDX-License-Identifier: Apache-2.0
"""Manifests for tests of batches."""

import json
from pathlib import Path
from typing import Any

from prefect_cometapi.flows import generate_batch
from prefect_cometapi.runway import BatchResult


def rows(count: int) -> list[dict[str, Any]]:
    """Return N different requests."""
    image = "https://example.com/cat.jpg"
    return [{"id": f"sku-{n}", "promptImage": image, "promptText": f"{n}"} for n in range(count)]


def manifest(tmp_path: Path, requests: list[dict[str, Any]], name: str = "wanted.jsonl") -> str:
    """Write a manifest of these rows and return its path."""
    path = tmp_path / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in requests), encoding="utf-8")
    return str(path)


def creates(sandbox: Any) -> int:
    return sum(request.route == "create" for request in sandbox.requests)


def make_batch(requests: Any, **options: Any) -> BatchResult:
    """Run a batch with options whose names the type checker does not know."""
    result: Any = generate_batch(requests, **options)
    return result
