# SPDX-License-Identifier: Apache-2.0
"""C2PA manifests of the clips, as Runway signs its files.

Runway's certificate is not ours to use. So a sandbox signs with a certificate of its own, which is
made when the first clip is signed and is on no trust list. The extra ``c2pa`` does the signing.
"""

import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .serving import PNG

SIGNER = "Sandbox of prefect-cometapi"
"""Organization of the certificate."""

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media that a trained model made."""

VALIDITY = timedelta(days=30)
"""Validity of the certificates. A sandbox lives for less."""


@dataclass(frozen=True)
class Identity:
    """Certificate chain and private key, as PEM."""

    chain: bytes
    key: bytes


def is_available() -> bool:
    """Return True if the extra ``c2pa`` is installed."""
    return find_spec("c2pa") is not None


def with_manifest(clip: bytes) -> bytes:
    """Return a copy of an MP4 or PNG with a signed manifest on how it was made."""
    import c2pa

    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    manifest: dict[str, Any] = {
        "claim_generator_info": [{"name": "prefect-cometapi sandbox"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }
    identity = sandbox_identity()
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, identity.chain, identity.key, None)
    signed = io.BytesIO()
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
        media_type = "image/png" if clip.startswith(PNG) else "video/mp4"
        builder.sign(signer, media_type, io.BytesIO(clip), signed)
    return signed.getvalue()


@cache
def sandbox_identity() -> Identity:
    """Return the certificate chain and the key with which all sandboxes of this process sign."""
    return new_identity(SIGNER)


def new_identity(organization: str) -> Identity:
    """Return a new certificate of an organization, as the C2PA specification asks for it.

    A certificate that signs itself is refused, so it comes from an authority of its own.
    """
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name(f"Authority of {organization}")
    root = _certificate(issuer, authority.public_key(), issuer, authority, is_authority=True)
    leaf = _certificate(_name(organization), key.public_key(), issuer, authority)
    pem = serialization.Encoding.PEM
    return Identity(
        chain=leaf.public_bytes(pem) + root.public_bytes(pem),
        key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _name(organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, organization),
        ]
    )


def _certificate(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    authority: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
    )
    if not is_authority:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(authority, hashes.SHA256())
