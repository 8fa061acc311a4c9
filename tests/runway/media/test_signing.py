# SPDX-License-Identifier: Apache-2.0
"""Manifests are verified, and copies are signed, with a certificate made for the tests."""

import asyncio
import io
import json
import sys
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from prefect_cometapi.runway import InvalidOutput, SigningError, sign_copy, verify_provenance
from prefect_cometapi.runway.media import signing
from prefect_cometapi.runway.media.inspector import inspect_video
from prefect_cometapi.runway.models.generation import Provenance
from prefect_cometapi.sandbox.clips.content_credentials import Identity, new_identity

from ...pictures import picture
from ..static_server import static_server
from .manifests import C2PA_UUID, RUNWAY, SOURCE_TYPE, signed

OURS = new_identity("Example Media GmbH")
P256 = bytes.fromhex("06082a8648ce3d030107")
"""Identifier of the curve P-256 in DER."""


@pytest.fixture
def pem(tmp_path: Path) -> dict[str, Path]:
    """Write the user's certificate and key."""
    files = {"certificate": tmp_path / "chain.pem", "key": tmp_path / "key.pem"}
    files["certificate"].write_bytes(OURS.chain)
    files["key"].write_bytes(OURS.key)
    return files


@pytest.fixture
def original(clips, tmp_path: Path) -> Path:
    """Write a video that Runway signed."""
    file = tmp_path / "original.mp4"
    file.write_bytes(signed((clips / "clip.mp4").read_bytes(), "video/mp4"))
    return file


def test_a_signed_copy_has_the_original_as_its_ingredient(original, pem, tmp_path):
    """The copy plays as before, names the user, and keeps the manifest of the original."""
    before, copy = original.read_bytes(), tmp_path / "copy.mp4"
    stated = sign_copy(original, copy, **pem)
    assert stated.signer == "Example Media GmbH"
    assert stated.digital_source_type == SOURCE_TYPE
    assert original.read_bytes() == before
    assert inspect_video(copy).frames == inspect_video(original).frames
    with c2pa.Reader(copy) as reader:
        found = json.loads(reader.json())
    (ingredient,) = found["manifests"][found["active_manifest"]]["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    issuer = found["manifests"][ingredient["active_manifest"]]["signature_info"]["issuer"]
    assert issuer == "RUNWAY AI, INC."
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chain.pem",
        "copy.mp4",
        "key.pem",
        "original.mp4",
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_copy_of_an_unsigned_picture_states_that_a_model_made_it(pem, tmp_path, kind):
    """An original without a manifest is an ingredient without one; the copy states its source."""
    plain = tmp_path / "plain"
    plain.write_bytes(picture(kind))
    stated = sign_copy(plain, tmp_path / "copy", **pem)
    assert (stated.found, stated.digital_source_type) == (True, SOURCE_TYPE)
    assert verify_provenance(tmp_path / "copy").state == "valid"


def test_a_signature_is_valid_until_the_file_changes(original, tmp_path, clips):
    """One changed bit of the film makes the manifest invalid; a trust anchor makes it trusted."""
    valid = verify_provenance(original)
    assert (valid.state, valid.problems) == ("valid", ("signingCredential.untrusted",))
    assert valid.provenance.signer == "RUNWAY AI, INC."
    (tmp_path / "anchors.pem").write_bytes(RUNWAY.chain)
    trusted = verify_provenance(original, tmp_path / "anchors.pem")
    assert (trusted.state, trusted.problems) == ("trusted", ())
    content = bytearray(original.read_bytes())
    content[-100] ^= 1
    original.write_bytes(content)
    changed = verify_provenance(original)
    assert changed.state == "invalid"
    assert "assertion.bmffHash.mismatch" in changed.problems
    assert verify_provenance(clips / "clip.mp4").state == "none"


def test_a_damaged_manifest_is_invalid(original):
    """A manifest that the library cannot read is not the same as none."""
    content = bytearray(original.read_bytes())
    at = content.index(C2PA_UUID) + 37
    content[at : at + 400] = b"\xff" * 400
    original.write_bytes(content)
    found = verify_provenance(original)
    assert (found.state, found.provenance.found) == ("invalid", False)
    assert found.problems


def compressed(content: bytes, identity: Identity) -> bytes:
    """Return a copy of a PNG with a compressed manifest, which the library signs."""
    settings = c2pa.Settings.from_dict({"core": {"prefer_compress_manifests": True}})
    made = {
        "claim_generator_info": [{"name": "Editor", "version": "2"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [{"action": "c2pa.edited"}]}}],
    }
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, identity.chain, identity.key, None)
    result = io.BytesIO()
    with (
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(made, c2pa.Context(settings)) as builder,
    ):
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        builder.sign(signer, "image/png", io.BytesIO(content), result)
    return result.getvalue()


def test_the_signer_of_an_ingredient_is_not_named_for_a_compressed_manifest(tmp_path):
    """The last manifest is the active one, also if only the library can decompress it."""
    file = tmp_path / "compressed.png"
    file.write_bytes(compressed(signed(picture("PNG"), "image/png"), OURS))
    stated = signing.stated_provenance(file)
    assert (stated.found, stated.signer) == (False, None)
    assert stated.problem == "the file has a compressed C2PA manifest, which is not read"
    verified = verify_provenance(file)
    assert verified.state == "valid"
    assert verified.provenance.signer == "Example Media GmbH"
    assert (verified.provenance.generator or "").startswith("Editor 2")
    assert verified.provenance.digital_source_type is None


def test_a_verification_describes_the_manifest_that_the_library_verified(original, monkeypatch):
    """The finding of the fast reader is not mixed with the verdict of the library."""
    other = Provenance(found=True, signer="Somebody else", digital_source_type="other")
    monkeypatch.setattr(signing, "read_provenance", lambda _file: other)
    verified = verify_provenance(original).provenance
    assert (verified.signer, verified.generator) == ("RUNWAY AI, INC.", "Gen-4 4.5")
    assert verified.digital_source_type == SOURCE_TYPE
    assert (verified.manifest or "").startswith("urn:c2pa:")


@pytest.mark.parametrize(
    "manifest",
    [
        {"claim_generator_info": "text"},
        {"assertions": [{"label": "c2pa.actions", "data": [1]}]},
        {"signature_info": {"issuer": 7}},
        {"label": 7},
    ],
    ids=str,
)
def test_a_manifest_of_an_unknown_form_is_described_as_such(manifest):
    """The content of a manifest is untrusted, also after the library has read it."""
    found = signing._of_manifest(manifest)
    assert found is not None
    assert found.problem == "the manifest has a form that cannot be read"


async def test_a_manifest_elsewhere_is_not_fetched(pem, tmp_path, clips):
    """A file that names the URL of its manifest makes no request, although the library would."""
    async with static_server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as (
        port,
        seen,
    ):
        file = tmp_path / "remote.mp4"
        film = (clips / "clip.mp4").read_bytes()
        file.write_bytes(signed(film, "video/mp4", remote=f"http://127.0.0.1:{port}/m.c2pa"))
        found = await asyncio.to_thread(verify_provenance, file)
        assert (found.state, found.provenance.found) == ("none", False)
        assert "remote manifest" in found.problems[0]
        with suppress(SigningError):
            await asyncio.to_thread(sign_copy, file, tmp_path / "copy.mp4", **pem)
        assert seen == []
        with pytest.raises(c2pa.C2paError):
            await asyncio.to_thread(c2pa.Reader, file)
        assert len(seen) == 1


def test_the_keys_that_c2pa_allows_are_taken():
    """The algorithm follows from the key, and a key of another kind is refused."""
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    for name, curve in curves.items():
        assert signing._algorithm(c2pa, ec.generate_private_key(curve)).name == name
    assert signing._algorithm(c2pa, ed25519.Ed25519PrivateKey.generate()).name == "ED25519"
    assert signing._algorithm(c2pa, rsa.generate_private_key(65537, 2048)).name == "PS256"
    for other in (ec.generate_private_key(ec.SECP256K1()), dsa.generate_private_key(2048)):
        with pytest.raises(SigningError, match=r"not one that C2PA allows|key is not"):
            signing._algorithm(c2pa, other)


def _encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def _of_unknown_kind(key: bytes) -> bytes:
    """Return a key on a curve that does not exist."""
    content = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    unknown = content.replace(P256, P256[:-1] + b"\x7f")
    return b"-----BEGIN PRIVATE KEY-----\n" + b64encode(unknown) + b"\n-----END PRIVATE KEY-----\n"


def _with_unknown_key(chain: bytes) -> bytes:
    """Return a certificate with a key on a curve that does not exist."""
    content = x509.load_pem_x509_certificates(chain)[0].public_bytes(serialization.Encoding.DER)
    unknown = content.replace(P256, P256[:-1] + b"\x7f")
    return b"-----BEGIN CERTIFICATE-----\n" + b64encode(unknown) + b"\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        ("certificate", b"no PEM", "has no certificate in PEM"),
        ("certificate", None, "the certificate cannot be read"),
        ("certificate", _with_unknown_key(OURS.chain), "is of a kind that cannot be read"),
        ("certificate", RUNWAY.chain, "is not the key of the certificate"),
        ("key", b"-----BEGIN PRIVATE KEY-----\ncanary\n", "has no private key in PEM"),
        ("key", _encrypted(OURS.key), "has a passphrase"),
        ("key", _of_unknown_kind(OURS.key), r"is of a kind that cannot be read; C2PA allows EC"),
        ("key", None, "the signing key cannot be read"),
        ("original", None, "cannot be read"),
        ("original", b"GIF89a", "is not an MP4, MOV, PNG, JPEG or WebP"),
        ("original", b"\x89PNG\r\n\x1a\n", "original.mp4 cannot be signed"),
        ("copy", b"here already", "exists already, and is not replaced"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # keys are made anew
)
def test_a_mistake_is_named_and_leaves_no_copy(original, pem, tmp_path, which, content, message):
    """Each wrong file is named, no message repeats the key, and no part of a copy remains."""
    files = {**pem, "original": original, "copy": tmp_path / "copy.mp4"}
    if content is None:
        files[which].unlink()
    else:
        files[which].write_bytes(content)
    with pytest.raises(SigningError, match=message) as refused:
        sign_copy(files["original"], files["copy"], certificate=pem["certificate"], key=pem["key"])
    assert "nothing was charged" in str(refused.value)
    assert "canary" not in str(refused.value)
    assert "PRIVATE" not in str(refused.value)
    assert files["copy"].exists() is (which == "copy")
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_takes_no_copy_is_named(original, pem, tmp_path):
    """A copy into a folder that does not exist is refused with the reason."""
    with pytest.raises(SigningError, match="No such file or directory"):
        sign_copy(original, tmp_path / "missing" / "copy.mp4", **pem)


def test_trust_anchors_must_be_certificates(original, tmp_path):
    """A file that is not in PEM is refused by its name, and so is one that the library rejects."""
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes(b"\xff")
    with pytest.raises(SigningError, match="is not in PEM"):
        verify_provenance(original, anchors)
    anchors.write_bytes(b"no PEM")
    with pytest.raises(SigningError, match=r"the trust anchors cannot be used: .*certificate"):
        verify_provenance(original, anchors)
    with pytest.raises(SigningError, match="the trust anchors cannot be read"):
        verify_provenance(original, tmp_path / "missing.pem")
    with pytest.raises(SigningError, match="is not a file on this machine"):
        verify_provenance(tmp_path / "missing.mp4")


def test_a_file_that_breaks_the_decoder_is_named(original, monkeypatch):
    """The message names the file, and does not speak of a purchase."""

    def broken(_file: Path) -> None:
        raise InvalidOutput("the output broke the decoder")

    monkeypatch.setattr(signing, "read_provenance", broken)
    with pytest.raises(SigningError, match=r"original\.mp4 cannot be examined: .*decoder"):
        signing.stated_provenance(original)


def test_without_the_extra_it_is_named(original, pem, tmp_path, monkeypatch):
    """A user without the extra learns how to install it."""
    monkeypatch.setitem(sys.modules, "c2pa", None)
    for call in (
        lambda: verify_provenance(original),
        lambda: sign_copy(original, tmp_path / "copy.mp4", **pem),
    ):
        with pytest.raises(SigningError, match=r"pip install 'prefect-cometapi\[c2pa\]'"):
            call()
