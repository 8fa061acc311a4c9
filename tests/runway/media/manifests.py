# SPDX-License-Identifier: Apache-2.0
"""C2PA manifests for the tests: built byte by byte, and signed by the library for real."""

import io
from typing import Any

import c2pa
import cbor2

from prefect_cometapi.sandbox.clips.content_credentials import Identity, new_identity

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
SUFFIX_OF_UUIDS = bytes.fromhex("00110010800000aa00389b71")
RUNWAY = new_identity("RUNWAY AI, INC.")


def box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4) + kind + content


def superbox(kind: bytes, label: str, *boxes: bytes) -> bytes:
    about = kind + SUFFIX_OF_UUIDS + b"\x03" + label.encode() + b"\0"
    return box(b"jumb", box(b"jumd", about) + b"".join(boxes))


def cbor(value: Any) -> bytes:
    return box(b"cbor", cbor2.dumps(value))


CLAIM = {"claim_generator_info": {"name": "Gen-4", "version": "4.5"}}
ACTIONS = {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]}


def cose(protected: Any, unprotected: Any = None) -> cbor2.CBORTag:
    return cbor2.CBORTag(18, [cbor2.dumps(protected), unprotected or {}, None, b"signature"])


def manifest(
    claim: Any = CLAIM,
    signature: Any = None,
    actions: Any = ACTIONS,
    *,
    label: str = "urn:c2pa:one",
    kind: bytes = b"c2ma",
    claim_label: str = "c2pa.claim.v2",
) -> bytes:
    """Return a manifest. Nothing of it is signed."""
    return superbox(
        kind,
        label,
        superbox(
            b"c2as",
            "c2pa.assertions",
            superbox(b"cbor", "c2pa.hash.bmff.v3", cbor({"alg": "sha256"})),
            superbox(b"cbor", "c2pa.actions.v2", cbor(actions)),
        ),
        superbox(b"c2cl", claim_label, cbor(claim)),
        superbox(b"c2cs", "c2pa.signature", cbor(signature or cose({33: [b"DER"]}))),
    )


def store(*manifests: bytes) -> bytes:
    return superbox(b"c2pa", "c2pa", *manifests)


def mp4(*stores: bytes, purpose: bytes = b"manifest") -> bytes:
    """Return the boxes of an MP4 with stores, and no film."""
    boxes = (
        box(b"uuid", C2PA_UUID + bytes(4) + purpose + b"\0" + bytes(8) + each) for each in stores
    )
    return box(b"ftyp", b"isommp42") + b"".join(boxes) + box(b"mdat", b"film")


def signed(
    content: bytes,
    media_type: str,
    identity: Identity = RUNWAY,
    remote: str | None = None,
    **definition: Any,
) -> bytes:
    """Return a copy of a file with a manifest that the library signs, or with the URL of one."""
    created = {**ACTIONS["actions"][0], "when": "2026-11-28T10:00:00Z"}
    made = {
        "claim_generator_info": [{"name": "Gen-4", "version": "4.5"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        **definition,
    }
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, identity.chain, identity.key, None)
    result = io.BytesIO()
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(made) as builder:
        if remote:
            builder.set_no_embed()
            builder.set_remote_url(remote)
        builder.sign(signer, media_type, io.BytesIO(content), result)
    return result.getvalue()
