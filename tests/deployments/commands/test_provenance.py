# SPDX-License-Identifier: Apache-2.0
"""The commands `provenance` and `sign`."""

import json
from pathlib import Path

import pytest

from prefect_cometapi.sandbox.clips.content_credentials import (
    SIGNER,
    SOURCE_TYPE,
    new_identity,
    with_manifest,
)

from ...pictures import picture


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write a signed and an unsigned picture, a certificate and its key."""
    (tmp_path / "plain.png").write_bytes(picture("PNG"))
    (tmp_path / "signed.png").write_bytes(with_manifest(picture("PNG")))
    identity = new_identity("Example Media GmbH")
    (tmp_path / "chain.pem").write_bytes(identity.chain)
    (tmp_path / "key.pem").write_bytes(identity.key)
    return tmp_path


def test_a_manifest_is_shown_with_its_signer(files, command, capsys):
    """The user sees who signed the file, how it was made, and that nothing was verified."""
    assert command("provenance", "signed.png") == 0
    shown = capsys.readouterr().out
    assert f"C2PA manifest: signed by {SIGNER} (not verified)" in shown
    assert f"digital source type: {SOURCE_TYPE}" in shown
    assert "verification" not in shown


def test_a_file_without_a_manifest_fails_the_command(files, command, capsys):
    """A script can rely on the exit status."""
    assert command("provenance", "plain.png") == 1
    assert capsys.readouterr().out == "C2PA manifest: none\n"
    assert command("provenance", "plain.png", "--verify") == 1
    assert "verification: not possible, there is no manifest" in capsys.readouterr().out
    assert command("provenance", "missing.png") == 1
    assert "missing.png is not a file on this machine" in capsys.readouterr().err


def test_a_manifest_is_verified_on_request(files, command, capsys):
    """A changed file fails the command, and a trust anchor makes the signer trusted."""
    assert command("provenance", "signed.png", "--verify") == 0
    shown = capsys.readouterr().out
    assert f"C2PA manifest: signed by {SIGNER}\n" in shown
    assert "the signer is not trusted" in shown
    content = bytearray((files / "signed.png").read_bytes())
    content[-20] ^= 1
    (files / "changed.png").write_bytes(content)
    assert command("provenance", "changed.png", "--verify") == 1
    assert "verification: failed" in capsys.readouterr().out


def test_programs_read_json(files, command, capsys):
    """The JSON has all that is known, and the verification if there was one."""
    command("provenance", "signed.png", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["signer"], found["file"]) == (True, SIGNER, "signed.png")
    assert "verification" not in found
    command("provenance", "signed.png", "--json", "--verify")
    found = json.loads(capsys.readouterr().out)
    assert found["verification"]["state"] == "valid"


def test_a_copy_is_signed_with_the_certificate_of_the_settings(files, command, capsys, monkeypatch):
    """The user sets certificate and key once; the copy is trusted by its own authority."""
    assert command("sign", "signed.png", "copy.png") == 1
    shown = capsys.readouterr().err
    assert "set COMETAPI_SIGNING_CERTIFICATE and COMETAPI_SIGNING_KEY" in shown
    assert "nothing was charged" in shown
    monkeypatch.setenv("COMETAPI_SIGNING_CERTIFICATE", "chain.pem")
    monkeypatch.setenv("COMETAPI_SIGNING_KEY", "key.pem")
    assert command("sign", "signed.png", "copy.png") == 0
    assert "signed by Example Media GmbH" in capsys.readouterr().out
    assert command("provenance", "copy.png", "--trust-anchors", "chain.pem") == 0
    assert "the signer is trusted" in capsys.readouterr().out
    options = ("--certificate", "chain.pem", "--key", "key.pem")
    assert command("sign", "plain.png", "other.png", *options) == 0
