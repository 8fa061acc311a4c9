# SPDX-License-Identifier: Apache-2.0
"""Drivers of object stores, which the extras of this package install."""

from ..redact import reason_of

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""Extra that installs the driver of fsspec for a scheme."""


def failure_of(url: str, error: Exception) -> str:
    """Return the reason of a file system's error, and the command for a missing driver; pure.

    Args:
        url: URL that was opened.
        error: Error of fsspec or of a driver. If the driver is not installed, it is an
            ``ImportError``, or for a scheme that only the driver registers (abfss), a
            ``ValueError``.
    """
    extra = EXTRAS.get(url.partition("://")[0].lower())
    is_missing = isinstance(error, ImportError) or str(error).startswith("Protocol not known")
    if extra is None or not is_missing:
        return reason_of(error)
    return f'{reason_of(error)} (pip install "prefect-cometapi[{extra}]")'
