# SPDX-License-Identifier: Apache-2.0
"""Reader of C2PA manifests in MP4, MOV, PNG, JPEG and WebP, without a check of their signatures.

A manifest store is a JUMBF box (ISO 19566-5): superboxes, each with a description and a label. The
last manifest in it is the active one. Its claim names the program that wrote it, its signature
holds the certificate of the signer, and its actions say how the media was made. Claim, signature
and actions are CBOR. The layout is that of the C2PA specification, 2.2: JUMBF in section 11, the
files in appendix A.

The bytes are untrusted. Sizes and counts are limited, nothing is nested deeper than the format
asks for, and whatever cannot be read is left out: a paid-for video is never refused for its
manifest. This module imports nothing of the package, because decoder.py runs it by its path.
"""

import base64
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import cbor2

MAX_STORE = 16 << 20
"""Maximum bytes of the manifest stores in a file. One with pictures in it has a few hundred KB."""

MAX_ELEMENTS = 10_000
"""Maximum number of elements at one level that are looked at, in a file or in a box."""

MAX_CBOR = 128 << 10
"""Maximum bytes of a CBOR document. Its objects take up to eighty times as much memory."""

MAX_TEXT = 4_000
"""Maximum characters of a text in the answer. JSON writes each as up to six bytes, or twelve."""

MAX_CERTIFICATE = 64 << 10
"""Maximum bytes of a certificate. One of a signer has one or two KB."""

MAX_DEPTH = 32
"""Maximum nesting of a CBOR document."""

MAX_POSITION = 1 << 62
"""Maximum position in a file. The operating system refuses higher ones."""

_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
"""Type of the ``uuid`` box of C2PA in an MP4."""

_PURPOSES = {b"manifest": 0, b"original": 0, b"update": 1}
"""Purposes of a ``uuid`` box that holds manifests, in the order in which their stores are read."""

_X5CHAIN = (33, "x5chain")
"""Names of the certificate chain in a COSE header; earlier versions of C2PA spelled it out."""

_PLAIN: Any = dict.fromkeys((*range(300), 1004, 43000, 55799), lambda value, _immutable: value)
"""Decoders that drop the tags which cbor2 knows. For a date it would import a module, which the
confined process cannot, and tags for regular expressions or references have no use here."""

_PNG = b"\x89PNG\r\n\x1a\n"
_STORE, _COMPRESSED = b"c2pa", b"c2cm"
_MANIFESTS = {b"c2ma", b"c2um", _COMPRESSED}
_CLAIM, _SIGNATURE, _ASSERTIONS, _ACTIONS = (
    "c2pa.claim",
    "c2pa.signature",
    "c2pa.assertions",
    "c2pa.actions",
)

_UNREADABLE = "the file has C2PA data that cannot be read"
_IS_COMPRESSED = "the file has a compressed C2PA manifest, which is not read"
_TOO_LARGE = f"the file has C2PA data of more than {MAX_STORE >> 20} MB, which is not read"


class _Box(NamedTuple):
    kind: bytes
    content: memoryview


class _Superbox(NamedTuple):
    """JUMBF superbox: its type, its label, and the boxes in it."""

    kind: bytes
    label: str
    boxes: list[_Box]

    def child(self, label: str) -> "_Superbox | None":
        """Return the first superbox in this one whose label begins with a text."""
        return next((box for box in _superboxes(self.boxes) if box.label.startswith(label)), None)

    def cbor(self, *, is_cose: bool = False) -> Any:
        """Return the first CBOR document in this box, or None."""
        content = next((box.content for box in self.boxes if box.kind == b"cbor"), None)
        return None if content is None else _cbor(content, is_cose=is_cose)


def read_manifest(file: BinaryIO) -> dict[str, Any]:
    """Return what the active C2PA manifest of a file states.

    Args:
        file: The file; its read position changes.

    Returns:
        ``found`` and, where they are known, ``manifest`` (its label), ``generator`` (the program),
        ``source_type`` (how the media was made), ``certificate`` (of the signer; DER in base64),
        and ``problem`` (why C2PA data in the file was not read).

    Raises:
        OSError: The file cannot be read.
    """
    try:
        return _read_active_manifest(file)
    except OSError:
        raise
    except Exception:  # noqa: BLE001 -- a mistake in this module must not cost a paid-for video
        return {"found": False, "problem": _UNREADABLE}


def _read_active_manifest(file: BinaryIO) -> dict[str, Any]:
    stores: list[bytes] = []
    for store in _stores(file):
        if len(store) > MAX_STORE - sum(map(len, stores)):
            return {"found": False, "problem": _TOO_LARGE}
        stores.append(store)
    manifests = [manifest for store in stores for manifest in _manifests(store)]
    active = manifests[-1] if manifests else None
    if active and active.kind == _COMPRESSED:  # an earlier one would name another signer
        return {"found": False, "problem": _IS_COMPRESSED}
    claim = active and active.child(_CLAIM)
    signature = active and active.child(_SIGNATURE)
    if not (active and claim and signature):
        return {"found": False, "problem": _UNREADABLE} if stores else {"found": False}
    stated = {
        "manifest": active.label,
        "generator": _generator(claim.cbor()),
        "source_type": next(filter(None, map(_source_type, reversed(manifests))), None),
        "certificate": _certificate(signature.cbor(is_cose=True)),
    }
    return {"found": True, **{name: value for name, value in stated.items() if value}}


def _manifests(store: bytes) -> list[_Superbox]:
    """Return the manifests in a store; the active one is the last."""
    found = [box for box in _superboxes(list(_boxes(memoryview(store)))) if box.kind == _STORE]
    return [
        manifest
        for box in found
        for manifest in _superboxes(box.boxes)
        if manifest.kind in _MANIFESTS
    ]


def _generator(claim: Any) -> str | None:
    """Return the name and version of the program that wrote a claim."""
    if not isinstance(claim, Mapping):
        return None
    info = claim.get("claim_generator_info")
    info = info[0] if isinstance(info, list | tuple) and info else info
    if isinstance(info, Mapping) and isinstance(info.get("name"), str):
        version = info.get("version")
        name = f"{info['name']} {version}" if isinstance(version, str) else info["name"]
        return name[:MAX_TEXT]
    stated = claim.get("claim_generator")
    return stated[:MAX_TEXT] if isinstance(stated, str) else None


def _source_type(manifest: _Superbox) -> str | None:
    """Return the first ``digitalSourceType`` in the actions of a manifest."""
    store = manifest.child(_ASSERTIONS)
    for box in _superboxes(store.boxes) if store else ():
        document = box.cbor() if box.label.startswith(_ACTIONS) else None
        actions = document.get("actions") if isinstance(document, Mapping) else None
        for action in actions if isinstance(actions, list | tuple) else ():
            stated = action.get("digitalSourceType") if isinstance(action, Mapping) else None
            if isinstance(stated, str):
                return stated[:MAX_TEXT]
    return None


def _certificate(signature: Any) -> str | None:
    """Return the signer's certificate in a COSE_Sign1 structure, as DER in base64."""
    if not (isinstance(signature, list | tuple) and len(signature) >= 2):
        return None
    encoded = signature[0]
    protected = _cbor(memoryview(encoded), is_cose=True) if isinstance(encoded, bytes) else None
    for header in (protected, signature[1]):
        if not isinstance(header, Mapping):
            continue
        for chain in map(header.get, _X5CHAIN):
            first = chain[0] if isinstance(chain, list | tuple) and chain else chain
            if isinstance(first, bytes) and len(first) <= MAX_CERTIFICATE:
                return base64.b64encode(first).decode()
    return None


def _cbor(content: memoryview, *, is_cose: bool = False) -> Any:
    """Return a CBOR document, or None if it is too large or not valid.

    Keys of maps must be texts, because an array as a key has a hash that an attacker can choose:
    a map of keys with equal hashes takes quadratic time. COSE has integers as keys, so its few
    documents in a file are limited by their size alone.

    Args:
        content: The document.
        is_cose: True for a document of COSE.
    """
    if len(content) > MAX_CBOR:
        return None
    try:
        return cbor2.loads(
            content,
            max_depth=MAX_DEPTH,
            str_errors="replace",
            semantic_decoders=_PLAIN,
            strict_hashable_types=not is_cose,
        )
    except Exception:  # noqa: BLE001 -- the library raises many types for untrusted bytes
        return None


def _superboxes(boxes: list[_Box]) -> Iterator[_Superbox]:
    """Yield the JUMBF superboxes among some boxes."""
    for box in boxes:
        if box.kind != b"jumb":
            continue
        parts = list(_boxes(box.content))
        if not parts or parts[0].kind != b"jumd" or len(parts[0].content) < 17:
            continue
        about = bytes(parts[0].content[:512])
        label = about[17:].partition(b"\0")[0] if about[16] & 2 else b""
        yield _Superbox(about[:4], label.decode("utf-8", "replace"), parts[1:])


def _boxes(content: memoryview) -> Iterator[_Box]:
    """Yield the boxes in some bytes, up to the first one that is not valid."""
    at = 0
    for _ in range(MAX_ELEMENTS):
        length, start = int.from_bytes(content[at : at + 4]), at + 8
        if length == 1:
            length, start = int.from_bytes(content[at + 8 : at + 16]), at + 16
        elif length == 0:
            length = len(content) - at
        end = at + length
        if not start <= end <= len(content):
            return
        yield _Box(bytes(content[at + 4 : at + 8]), content[start:end])
        at = end


def _stores(file: BinaryIO) -> Iterator[bytes]:
    """Yield the manifest stores in a file; one of more than ``MAX_STORE`` bytes is cut off."""
    size = file.seek(0, os.SEEK_END)
    head = _read(file, 0, 12)
    if head.startswith(_PNG):
        yield from _stores_in_png(file)
    elif head.startswith(b"\xff\xd8\xff"):
        yield from _stores_in_jpeg(file)
    elif head[:4] == b"RIFF":
        yield from _stores_in_webp(file)
    elif head.startswith(b"\x1aE\xdf\xa3"):
        return  # C2PA defines no place for a manifest in a WebM
    else:
        yield from _stores_in_mp4(file, size)


def _stores_in_mp4(file: BinaryIO, size: int) -> list[bytes]:
    found: list[tuple[int, bytes]] = []
    at = total = 0
    for _ in range(MAX_ELEMENTS):
        head = _read(file, at, 64)
        length, start = int.from_bytes(head[:4]), 8
        if length == 1:
            length, start = int.from_bytes(head[8:16]), 16
        elif length == 0:
            length = size - at
        if len(head) < 8 or length < start:
            break
        if head[4:8] == b"uuid" and head[start : start + 16] == _UUID:
            purpose = head[start + 20 :].partition(b"\0")[0]  # after version and flags
            if purpose in _PURPOSES:
                skipped = start + 20 + len(purpose) + 9  # with an offset that is not used
                count = max(0, min(length - skipped, MAX_STORE + 1))
                found.append((_PURPOSES[purpose], _read(file, at + skipped, count)))
                total += count
        if total > MAX_STORE:
            break
        at += length
    return [store for _, store in sorted(found, key=lambda one: one[0])]


def _stores_in_png(file: BinaryIO) -> Iterator[bytes]:
    at = len(_PNG)
    for _ in range(MAX_ELEMENTS):
        head = _read(file, at, 8)
        length = int.from_bytes(head[:4])
        if len(head) < 8 or head[4:] == b"IEND":
            return
        if head[4:] == b"caBX":
            yield _read(file, at + 8, min(length, MAX_STORE + 1))
        at += 12 + length


def _stores_in_webp(file: BinaryIO) -> Iterator[bytes]:
    at = 12
    for _ in range(MAX_ELEMENTS):
        head = _read(file, at, 8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"C2PA":
            yield _read(file, at + 8, min(length, MAX_STORE + 1))
        at += 8 + length + length % 2


def _stores_in_jpeg(file: BinaryIO) -> list[bytes]:
    """Return the JUMBF boxes in the APP11 segments, each joined from its packets.

    Each packet repeats the head of the box after its number.
    """
    found: dict[bytes, bytearray] = {}
    total = 0
    for content in _segments_of_jpeg(file):
        if content[:2] != b"JP" or content[12:16] != b"jumb":
            continue
        number, head = content[2:4], 16 if content[8:12] == b"\0\0\0\1" else 8
        part = content[8 + head :] if number in found else content[8:]
        found.setdefault(number, bytearray()).extend(part)
        total += len(part)
        if total > MAX_STORE:
            break
    return [bytes(box) for box in found.values() if box[16:20] == _STORE or box[24:28] == _STORE]


def _segments_of_jpeg(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of each APP11 segment before the compressed data."""
    at = 2
    for _ in range(MAX_ELEMENTS):
        head = _read(file, at, 4)
        length = int.from_bytes(head[2:])
        if len(head) < 4 or head[0] != 0xFF or head[1] in {0xD9, 0xDA} or length < 2:
            return
        if head[1] == 0xEB:
            yield _read(file, at + 4, length - 2)
        at += 2 + length


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    if at > MAX_POSITION:
        return b""
    file.seek(at)
    return file.read(count)
