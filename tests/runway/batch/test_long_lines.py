# SPDX-License-Identifier: Apache-2.0
"""A manifest is read only as far as its rows can be long."""

import gzip
import json

import pytest

from prefect_cometapi.runway import InvalidManifest
from prefect_cometapi.runway.batch.manifest import read_rows

ROW = {"id": "a", "promptImage": "https://example.com/cat.jpg"}


def test_a_line_that_is_longer_than_any_row_is_not_read_to_its_end(tmp_path, monkeypatch):
    """A few compressed kilobytes may expand to gigabytes of blanks."""
    monkeypatch.setattr("prefect_cometapi.runway.batch.manifest.MAX_CELL_LENGTH", 1000)
    place = tmp_path / "rows.jsonl.gz"
    place.write_bytes(gzip.compress(json.dumps(ROW).encode() + b"\n" + b" " * 10_000_000))
    with pytest.raises(InvalidManifest, match="line 2 is longer than 1,000 characters"):
        read_rows(str(place))
