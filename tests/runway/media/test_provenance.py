# SPDX-License-Identifier: Apache-2.0
"""The provenance of a file is described from what another process read, and from nothing else."""

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_cometapi.runway.media.provenance import MAX_TEXT, provenance_of
from prefect_cometapi.runway.models.generation import Provenance

from .manifests import RUNWAY


def certificate(*names: tuple[x509.ObjectIdentifier, str]) -> str:
    """Return a certificate with a subject as the reader does: DER in base64."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    leaf = x509.load_pem_x509_certificates(RUNWAY.chain)[0]
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(leaf.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    return base64.b64encode(built.public_bytes(Encoding.DER)).decode()


ORGANIZATION, COMMON = x509.NameOID.ORGANIZATION_NAME, x509.NameOID.COMMON_NAME


@pytest.mark.parametrize(
    ("stated", "signer"),
    [
        (certificate((COMMON, "signer-7"), (ORGANIZATION, "RUNWAY AI, INC.")), "RUNWAY AI, INC."),
        (certificate((COMMON, "signer-7")), "signer-7"),
        (certificate((ORGANIZATION, "two\nlines \x1b[31m")), "two lines \N{REPLACEMENT CHARACTER}"),
        (certificate(), None),
        (base64.b64encode(b"no certificate").decode(), None),
        (None, None),
    ],
    ids=["organization", "common name", "control characters", "no name", "no DER", "none"],
)
def test_the_signer_is_the_organization_of_the_certificate(stated, signer):
    """A certificate without an organization has a common name, or the signer is unnamed."""
    found = provenance_of({"found": True, "certificate": stated})
    assert (found.signer or "").partition("[")[0] == (signer or "")
    assert (signer or "an unnamed signer").partition("[")[0] in found.in_words()


LEAF = x509.load_pem_x509_certificates(RUNWAY.chain)[0].public_bytes(Encoding.DER)


@given(
    st.lists(st.tuples(st.integers(0, len(LEAF) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(LEAF)),
)
def test_a_damaged_certificate_costs_no_video(changes, end):
    """Whatever byte is changed or cut off, the signer has a name or none, and nothing is raised."""
    content = bytearray(LEAF)
    for at, value in changes:
        content[at] = value
    for each in (bytes(content), bytes(content[:end])):
        stated = {"found": True, "certificate": base64.b64encode(each).decode()}
        assert provenance_of(stated).found


def test_a_certificate_of_an_unknown_version_costs_no_video():
    """The library raises an error of its own type for a version that does not exist."""
    at = LEAF.index(bytes.fromhex("a003020102"))
    content = LEAF[: at + 4] + b"\x07" + LEAF[at + 5 :]
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_certificate(content)
    stated = {"found": True, "certificate": base64.b64encode(content).decode()}
    assert provenance_of(stated).signer is None


@given(st.text(max_size=1000))
def test_no_text_of_a_manifest_is_long_or_controls_a_terminal(text):
    """Every text of an untrusted signer is short, printable and in one line."""
    names = ("manifest", "generator", "source_type", "problem")
    found = provenance_of({"found": True, **dict.fromkeys(names, text)})
    for shown in (found.manifest, found.generator, found.digital_source_type, found.problem):
        assert shown is None or (len(shown) <= MAX_TEXT and shown.isprintable())


@pytest.mark.parametrize(
    "forged",
    [
        {"found": "perhaps"},
        {"found": True, "generator": 1},
        {"found": True, "certificate": 1},
        {"found": True, "certificate": "not base64!"},
        {},
    ],
    ids=str,
)
def test_a_forged_answer_is_not_believed(forged):
    """A decoder process that a file took over may answer anything."""
    with pytest.raises((ValueError, TypeError, LookupError, ValidationError)):
        provenance_of(forged)


def test_a_secret_in_a_manifest_is_not_repeated():
    """A signed URL in a manifest loses its signature."""
    url = "https://example.com/a?X-Amz-Signature=canary0123456789abcdef"
    assert "canary" not in str(provenance_of({"found": True, "generator": url}))


def test_the_states_of_a_manifest_read_plainly():
    """A user learns whether there is a manifest, who signed it, and that nobody verified it."""
    signed = Provenance(found=True, signer="RUNWAY AI, INC.")
    assert signed.in_words() == "signed by RUNWAY AI, INC. (not verified)"
    assert Provenance(found=False).in_words() == "none"
    assert Provenance(found=False, problem="it is damaged").in_words() == "none: it is damaged"
