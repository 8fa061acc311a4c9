# SPDX-License-Identifier: Apache-2.0
"""Media types and sizes of sources. The content decides; a suffix or a label may be wrong.

Only the first bytes are compared here. Whatever has to be parsed is left to the decoder process
(runway/media/inspector.py), since a source may come from anyone.
"""

from typing import Literal

Kind = Literal["image", "video"]

MAX_DATA_BYTES = {"image": 5_000_000, "video": 16_000_000}
"""Maximum bytes of a decoded data URI (Runway's docs, Inputs)."""

MAX_FETCHED_BYTES = {"image": 16_000_000, "video": 32_000_000}
"""Maximum bytes of a file behind a URL (Runway's docs, Inputs)."""

HEAD_BYTES = 64 << 10
"""Bytes at the beginning of a file that are enough to recognise its type."""

IMAGE_TYPES = {"image/jpeg", "image/png", "image/webp"}
"""Types of images that Runway takes (Runway's docs, Inputs)."""

_STARTS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),
    (b"MM\x00+", "image/tiff"),
    (b"\x00\x00\x00\x0cJXL \r\n", "image/jxl"),
    (b"\x00\x00\x00\x0cjP  \r\n", "image/jp2"),
    (b"8BPS", "image/vnd.adobe.photoshop"),
    (b"OggS", "video/ogg"),
    (b"FLV\x01", "video/x-flv"),
    (b"\x00\x00\x01\xba", "video/mpeg"),
)
_RIFF = {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"msf1")
_BRANDS = {
    b"qt  ": "video/quicktime",
    b"avif": "image/avif",
    b"avis": "image/avif",
    **dict.fromkeys(_HEIC_BRANDS, "image/heic"),
}
_GENERAL_BRANDS = {b"mif1", b"msf1"}  # of HEIC and AVIF
_QUICKTIME_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip"}  # old files have no ftyp
_LABELS = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}


def media_type_of(head: bytes) -> str | None:
    """Return the media type of a file by its first bytes, or None if it is not recognised; pure."""
    for start, media_type in _STARTS:
        if head.startswith(start):
            return media_type
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _type_of_brand(head)
    if head[4:8] in _QUICKTIME_BOXES:
        return "video/quicktime"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/webm" if b"webm" in head[:100] else "video/x-matroska"
    return "image/svg+xml" if _is_svg(head) else None


def _type_of_brand(head: bytes) -> str:
    brand = head[8:12]
    if brand in _GENERAL_BRANDS and b"avif" in head[16 : int.from_bytes(head[:4])]:
        return "image/avif"
    return "video/3gpp" if brand.startswith(b"3g") else _BRANDS.get(brand, "video/mp4")


def _is_svg(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith((b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text


def usual_type(label: str) -> str:
    """Return the registered form of a media type, such as image/jpeg for image/jpg; pure."""
    return _LABELS.get(label, label)


def problem_of_type(media_type: str | None, kind: str) -> str | None:
    """Return the reason why a field of a kind does not take a media type, or None; pure."""
    if media_type is None:
        known = "a JPEG, PNG or WebP" if kind == "image" else "a video that this package knows"
        return f"its content is not {known}"
    if not media_type.startswith(f"{kind}/"):
        article = "an image" if kind == "image" else "a video"
        return f"it is {media_type}, but the field takes {article}"
    if kind == "image" and media_type not in IMAGE_TYPES:
        return f"it is {media_type}, but Runway takes only JPEG, PNG and WebP, so convert it first"
    return None
