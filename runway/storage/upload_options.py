# SPDX-License-Identifier: Apache-2.0
"""Options of uploads to object stores: the media type of a file, by the suffix of its name.

A store gives the type to every browser that opens the file. Without one, most browsers save a video
or a gallery to the disk in place of showing it.
"""

from importlib import import_module
from pathlib import PurePosixPath
from typing import Any

_MEDIA_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".gz": "application/gzip",
    ".html": "text/html; charset=utf-8",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".mov": "video/quicktime",
    ".mp4": "video/mp4",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".webm": "video/webm",
    ".webp": "image/webp",
}


def media_type_of_name(name: str) -> str:
    """Return the media type of a file by the suffix of its name; pure.

    Python's own table depends on files of the machine.
    """
    return _MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


def put_options(scheme: str, name: str) -> dict[str, Any]:
    """Return the options of fsspec's ``put_file`` that give a file its media type.

    Args:
        scheme: Scheme of the storage's URL. Only those of object stores have such an option.
        name: Name of the file in the storage.
    """
    kind = media_type_of_name(name)
    match scheme:
        case "s3" | "s3a":
            return {"ContentType": kind}
        case "gs" | "gcs":
            return {"content_type": kind}
        case "az" | "abfs" | "abfss":
            return {"content_settings": azure_settings(kind)}
        case _:
            return {}


def azure_settings(media_type: str) -> Any:
    """Return Azure's own object for a media type, whose package every Azure storage brings."""
    return import_module("azure.storage.blob").ContentSettings(content_type=media_type)
