# SPDX-License-Identifier: Apache-2.0
"""C2PA provenance of a file, from what the decoder process read of its manifest.

The signer is the organization in the certificate of the signature. Neither the signature nor the
certificate is verified here; ``signing.py`` does that with the extra ``c2pa``.
"""

import base64
from collections.abc import Mapping
from typing import Any

from ..models.generation import Provenance
from ..redact import scrub

MAX_TEXT = 200
"""Maximum characters of a text from a manifest. More is cut off."""


def provenance_of(stated: Mapping[str, Any]) -> Provenance:
    """Return the provenance that a manifest states.

    Args:
        stated: What ``read_manifest`` in manifest_store.py returned, in another process.

    Raises:
        TypeError: A value is not of the type that the reader returns.
        ValueError: The certificate is not in base64.
    """
    texts = {
        "manifest": stated.get("manifest"),
        "generator": stated.get("generator"),
        "digital_source_type": stated.get("source_type"),
        "problem": stated.get("problem"),
    }
    return Provenance(
        found=stated["found"],
        signer=_signer(stated.get("certificate")),
        **{name: scrub(text, limit=MAX_TEXT) for name, text in texts.items() if text},
    )


def _signer(certificate: str | None) -> str | None:
    """Return the organization in a certificate, or else the common name, if it has one of them."""
    if certificate is None:
        return None
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    content = base64.b64decode(certificate, validate=True)
    try:
        subject = x509.load_der_x509_certificate(content).subject
        names = [
            *subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME),
            *subject.get_attributes_for_oid(NameOID.COMMON_NAME),
        ]
    except Exception:  # noqa: BLE001 -- it is untrusted; the library raises errors of many types
        return None
    return scrub(str(names[0].value), limit=MAX_TEXT) if names else None
