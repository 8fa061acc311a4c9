# SPDX-License-Identifier: Apache-2.0
"""Commands ``prefect-cometapi provenance`` and ``sign``: C2PA manifests of files."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ...runway.environment import read_settings
from ...runway.errors import SigningError
from ...runway.media.signing import Verification, sign_copy, stated_provenance, verify_provenance
from ...runway.models.generation import Provenance
from ..console import console, escape

_STATES = {
    "none": "not possible, there is no manifest",
    "invalid": "failed",
    "valid": "signature and file match; the signer is not trusted",
    "trusted": "signature and file match; the signer is trusted",
}


def provenance(
    file: Annotated[Path, Parameter(help="MP4, MOV, PNG, JPEG or WebP on this machine.")],
    *,
    verify: Annotated[
        bool,
        Parameter(negative="", help="Verify signature and content. Needs the extra c2pa."),
    ] = False,
    trust_anchors: Annotated[
        Path | None,
        Parameter(help="PEM file of the certificates to trust; verifies, too."),
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON.")] = False,
) -> None:
    """Show the C2PA manifest of a file. Free. Fails if it has none, or an invalid one."""
    checked = None
    if verify or trust_anchors:
        checked = verify_provenance(file, trust_anchors)
    stated = checked.provenance if checked else stated_provenance(file)
    if json:
        shown: dict[str, Any] = {"file": str(file), **stated.model_dump(mode="json")}
        if checked:
            shown["verification"] = checked.model_dump(mode="json", exclude={"provenance"})
        console.print_json(data=shown)
    else:
        _show(stated, checked)
    if not stated.found or (checked and checked.state in {"none", "invalid"}):
        sys.exit(1)


def sign(
    file: Annotated[Path, Parameter(help="MP4, MOV, PNG, JPEG or WebP on this machine.")],
    copy: Annotated[Path, Parameter(help="Path of the signed copy; nothing may be there.")],
    *,
    certificate: Annotated[
        Path | None,
        Parameter(help="PEM file of certificate and chain; COMETAPI_SIGNING_CERTIFICATE if unset."),
    ] = None,
    key: Annotated[
        Path | None,
        Parameter(help="PEM file of the private key; COMETAPI_SIGNING_KEY if unset."),
    ] = None,
    timestamp_url: Annotated[
        str | None, Parameter(help="URL of a time stamp authority (RFC 3161).")
    ] = None,
) -> None:
    """Write a copy of a file that you sign by C2PA, with the original as its ingredient. Free."""
    settings = read_settings()
    certificate, key = certificate or settings.signing_certificate, key or settings.signing_key
    if certificate is None or key is None:
        raise SigningError(
            "there is no certificate to sign with: set COMETAPI_SIGNING_CERTIFICATE and "
            "COMETAPI_SIGNING_KEY, or --certificate and --key"
        )
    _show(sign_copy(file, copy, certificate=certificate, key=key, timestamp_url=timestamp_url))


def _show(stated: Provenance, checked: Verification | None = None) -> None:
    lines = {
        "C2PA manifest": stated.in_words(),
        "digital source type": stated.digital_source_type,
        "written by": stated.generator,
        "label": stated.manifest,
        "verification": checked and _STATES[checked.state],
        "failed checks": checked and ", ".join(checked.problems),
    }
    if checked and checked.state in {"valid", "trusted"}:
        lines["C2PA manifest"] = f"signed by {stated.signer or 'an unnamed signer'}"
    for name, text in lines.items():
        if text:
            console.print(f"{name}: {escape(text)}", soft_wrap=True)
