# SPDX-License-Identifier: Apache-2.0
"""Verification of C2PA manifests, and signed copies of files, with the extra ``c2pa``.

A file with a manifest must not be changed, or its signature is no longer valid. So a signature is
always added to a copy, whose manifest has the original as its ingredient. The library is native
code that reads the file in this process. It is used only on request, not for every delivery, and
fetches nothing from a network except a time stamp.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field

from ..errors import DeliveryError, SigningError
from ..models.disclosure import DIGITAL_SOURCE_TYPE
from ..models.generation import FrozenModel, Provenance
from ..models.media_types import HEAD_BYTES, media_type_of
from ..redact import reason_of, scrub
from .inspector import SUFFIXES, read_provenance
from .provenance import MAX_TEXT, provenance_of

NO_C2PA = "this needs the extra c2pa: pip install 'prefect-cometapi[c2pa]'"

_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_ALLOWED_KEYS = "C2PA allows EC P-256, P-384 or P-521, RSA and Ed25519"


class Verification(FrozenModel):
    """Result of the verification of a file's C2PA manifest."""

    state: Literal["none", "invalid", "valid", "trusted"] = Field(
        description="none: there is no manifest. invalid: the manifest or the file was changed. "
        "valid: signature and file match. trusted: the certificate also leads to a trust anchor."
    )
    problems: tuple[str, ...] = Field(
        default=(), description="C2PA's codes of the checks that failed, or what could not be read."
    )
    provenance: Provenance = Field(
        description="What the verified manifest states, or else what the file states."
    )


def verify_provenance(file: Path, trust_anchors: Path | None = None) -> Verification:
    """Verify the C2PA manifest of a file on this machine. Needs the extra ``c2pa``.

    Args:
        file: MP4, MOV, PNG, JPEG or WebP.
        trust_anchors: PEM file with the certificates to trust. Without it, no signer is trusted.

    Raises:
        SigningError: The extra is not installed, or the trust anchors or the file cannot be used.
    """
    library = c2pa_library()
    stated = stated_provenance(file)
    settings: dict[str, dict[str, Any]] = dict(_OFFLINE)
    if trust_anchors is not None:
        settings["trust"] = {"trust_anchors": _text_of(trust_anchors, "the trust anchors")}
        settings["verify"] = {**_OFFLINE["verify"], "verify_trust": True}
    with _reported("the trust anchors cannot be used"):
        context = library.Context(library.Settings.from_dict(settings))
    try:
        with (
            file.open("rb") as content,
            library.Reader(_media_type(file), content, None, context) as reader,
        ):
            verdict, found = reader.get_validation_state(), reader.get_validation_results()
            verified = _of_manifest(reader.get_active_manifest()) or stated
    except library.C2paError.ManifestNotFound:
        return Verification(state="none", provenance=stated)
    except library.C2paError as error:  # also for a manifest elsewhere, which is not fetched
        state = "invalid" if stated.found or stated.problem else "none"
        return Verification(state=state, problems=(_problem(error),), provenance=stated)
    active = (found or {}).get("activeManifest") or {}
    problems = tuple(
        dict.fromkeys(scrub(str(one.get("code"))) for one in active.get("failure", ()))
    )
    states: dict[Any, Literal["valid", "trusted"]] = {"Valid": "valid", "Trusted": "trusted"}
    return Verification(
        state=states.get(verdict, "invalid"), problems=problems, provenance=verified
    )


def _of_manifest(manifest: Any) -> Provenance | None:
    """Return what a manifest states that the library has read; None if it read none.

    The verdict is about this manifest, so signer, program and source must not come from another.
    """
    try:
        return _described(manifest) if manifest else None
    except (AttributeError, LookupError, TypeError, ValueError):  # its content is untrusted
        return Provenance(found=True, problem="the manifest has a form that cannot be read")


def _described(manifest: dict[str, Any]) -> Provenance:
    info = manifest.get("claim_generator_info") or [{}]
    name, program_version = info[0].get("name"), info[0].get("version")
    generator = " ".join(filter(None, [name, program_version])) or manifest.get("claim_generator")
    stated = provenance_of(
        {
            "found": True,
            "manifest": manifest.get("label"),
            "generator": generator,
            "source_type": _source_type(manifest),
        }
    )
    signature = manifest.get("signature_info") or {}
    signer = signature.get("issuer") or signature.get("common_name")
    return stated.model_copy(update={"signer": signer and scrub(signer, limit=MAX_TEXT)})


def _source_type(manifest: dict[str, Any]) -> str | None:
    """Return the first ``digitalSourceType`` in the actions of a manifest."""
    for assertion in manifest.get("assertions") or ():
        if not assertion["label"].startswith("c2pa.actions"):
            continue
        for action in assertion["data"].get("actions") or ():
            if stated := action.get("digitalSourceType"):
                return str(stated)
    return None


def sign_copy(
    original: Path,
    copy: Path,
    *,
    certificate: Path,
    key: Path,
    timestamp_url: str | None = None,
) -> Provenance:
    """Write a copy of a file with a C2PA manifest that the user signs. Needs the extra ``c2pa``.

    The manifest has the original as its ingredient, with the manifest that the original has, and
    states that a trained model made the media. The original is not changed.

    Args:
        original: MP4, MOV, PNG, JPEG or WebP on this machine.
        copy: Path of the copy; nothing must be there.
        certificate: PEM file with the certificate and its chain.
        key: PEM file with the private key of the certificate, without a passphrase.
        timestamp_url: URL of a time stamp authority (RFC 3161). With its time stamp, the signature
            stays valid after the certificate expires.

    Returns:
        What the manifest of the copy states.

    Raises:
        SigningError: The extra is not installed, a file cannot be used, or the certificate is not
            one that C2PA allows. There is no copy then.
    """
    library = c2pa_library()
    if copy.exists():
        raise SigningError(f"{copy} exists already, and is not replaced")
    media_type = _media_type(original)
    signer_info = _signer_info(library, certificate, key, timestamp_url)
    published = {"action": "c2pa.published", "digitalSourceType": DIGITAL_SOURCE_TYPE}
    name = "prefect-cometapi"
    manifest = {
        "title": copy.name,
        "claim_generator_info": [{"name": name, "version": version(name)}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [published]}}],
    }
    part = copy.with_name(f".{copy.name[:100]}.{uuid4().hex[:8]}.part")
    try:
        with _reported(f"{original.name} cannot be signed"):
            context = library.Context(library.Settings.from_dict(_OFFLINE))
            with (
                library.Signer.from_info(signer_info) as signer,
                library.Builder(manifest, context) as builder,
                original.open("rb") as source,
                part.open("w+b") as target,
            ):
                builder.set_intent(library.C2paBuilderIntent.EDIT)  # the original is the ingredient
                builder.sign(signer, media_type, source, target)
            part.rename(copy)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return stated_provenance(copy)


def stated_provenance(file: Path) -> Provenance:
    """Return what the C2PA manifest of a file on this machine states; nothing is verified.

    Raises:
        SigningError: The file cannot be read.
    """
    if not file.is_file():
        raise SigningError(f"{file} is not a file on this machine")
    try:
        return read_provenance(file)
    except DeliveryError as error:
        raise SigningError(f"{file} cannot be examined: {error.message}") from None


def c2pa_library() -> Any:
    """Return the module of the extra ``c2pa``.

    Raises:
        SigningError: It is not installed.
    """
    try:
        import c2pa
    except (ImportError, OSError):  # the second one: the native library does not load
        raise SigningError(NO_C2PA) from None
    return c2pa


def _signer_info(library: Any, certificate: Path, key: Path, timestamp_url: str | None) -> Any:
    """Return what the library signs with.

    Raises:
        SigningError: The files cannot be used together. No message repeats the key.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    chain, secret = _content(certificate, "the certificate"), _content(key, "the signing key")
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        of_certificate = leaf.public_key()
    except (ValueError, x509.InvalidVersion):
        raise SigningError(f"{certificate} has no certificate in PEM") from None
    except UnsupportedAlgorithm:
        raise SigningError(f"the key of {certificate} is of a kind that cannot be read") from None
    try:
        private = load_pem_private_key(secret, password=None)
    except TypeError:
        raise SigningError(f"{key} has a passphrase; write the key without one") from None
    except ValueError:
        raise SigningError(f"{key} has no private key in PEM") from None
    except UnsupportedAlgorithm:
        raise SigningError(f"{key} is of a kind that cannot be read; {_ALLOWED_KEYS}") from None
    if private.public_key() != of_certificate:
        raise SigningError(f"{key} is not the key of the certificate in {certificate}")
    return library.C2paSignerInfo(_algorithm(library, private), chain, secret, timestamp_url)


def _algorithm(library: Any, key: Any) -> Any:
    """Return the algorithm that C2PA defines for a key.

    Raises:
        SigningError: It defines none.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return library.C2paSigningAlg[_CURVES[key.curve.name]]
    if isinstance(key, rsa.RSAPrivateKey):
        return library.C2paSigningAlg.PS256
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return library.C2paSigningAlg.ED25519
    raise SigningError(f"the signing key is not one that C2PA allows; {_ALLOWED_KEYS}")


def _media_type(file: Path) -> str:
    try:
        with file.open("rb") as content:
            found = media_type_of(content.read(HEAD_BYTES))
    except OSError as error:
        raise SigningError(f"{file} cannot be read: {reason_of(error)}") from None
    if found not in SUFFIXES:
        raise SigningError(f"{file} is not an MP4, MOV, PNG, JPEG or WebP")
    return found


def _content(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SigningError(f"{what} cannot be read: {file}: {reason_of(error)}") from None


def _text_of(file: Path, what: str) -> str:
    try:
        return _content(file, what).decode("ascii")
    except UnicodeDecodeError:
        raise SigningError(f"{file} is not in PEM") from None


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn errors of the library and of files into a SigningError."""
    library = c2pa_library()
    try:
        yield
    except library.C2paError as error:
        raise SigningError(f"{what}: {_problem(error)}") from None
    except OSError as error:
        raise SigningError(f"{what}: {reason_of(error)}") from None


def _problem(error: Exception) -> str:
    return scrub(str(error), limit=300)
