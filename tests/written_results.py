# SPDX-License-Identifier: Apache-2.0
"""Results of a batch as its output manifest has them."""

import gzip
from typing import Any

from pyarrow import parquet

from prefect_cometapi.runway.batch.models import ItemResult
from prefect_cometapi.runway.batch.strict_json import strict_json
from prefect_cometapi.runway.batch.table_files import located


def read_results(location: str) -> list[ItemResult]:
    """Return the results that were written to a path or an fsspec URL."""
    files, path = located(location)
    file: Any
    with files.open(path, "rb") as file:
        if location.endswith(".parquet"):
            rows = parquet.ParquetFile(file).read().to_pylist()
        else:
            content = file.read()
            text = gzip.decompress(content) if location.endswith(".gz") else content
            rows = [strict_json(line) for line in text.decode().split("\n") if line]
    return [ItemResult.model_validate(row) for row in rows]
