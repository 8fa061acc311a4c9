# SPDX-License-Identifier: Apache-2.0
"""C2PA manifests are found in real and hand-made files, and hostile ones do no harm."""

import base64
import io
import json
import tracemalloc
from itertools import islice, product
from time import process_time

import cbor2
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.media import manifest_store
from prefect_cometapi.runway.media.decoder import CPU_TIMEOUT
from prefect_cometapi.runway.media.inspector import examine_output, inspect_video, read_provenance
from prefect_cometapi.runway.media.manifest_store import MAX_CBOR, MAX_STORE, read_manifest

from ...pictures import picture
from .manifests import (
    ACTIONS,
    C2PA_UUID,
    CLAIM,
    RUNWAY,
    SOURCE_TYPE,
    box,
    cbor,
    cose,
    manifest,
    mp4,
    signed,
    store,
    superbox,
)

PICTURES = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def read(content: bytes) -> dict:
    return read_manifest(io.BytesIO(content))


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_signed_video_names_its_signer_and_its_source(clips, tmp_path, suffix):
    """The confined decoder finds what the library signed, and the video is examined as before."""
    plain = (clips / f"clip.{suffix}").read_bytes()
    media_type = {"mp4": "video/mp4", "mov": "video/quicktime"}[suffix]
    file = tmp_path / f"signed.{suffix}"
    file.write_bytes(signed(plain, media_type))
    info, poster = examine_output(file, "video")
    assert info.provenance == read_provenance(file) == inspect_video(file).provenance
    assert info.provenance is not None
    assert info.provenance.found
    assert info.provenance.signer == "RUNWAY AI, INC."
    assert info.provenance.digital_source_type == SOURCE_TYPE
    assert info.provenance.generator == "Gen-4 4.5"
    assert (info.provenance.manifest or "").startswith("urn:c2pa:")
    assert info.frames == inspect_video(clips / f"clip.{suffix}").frames
    assert poster.startswith(b"\xff\xd8")


@pytest.mark.parametrize("kind", PICTURES)
def test_a_signed_picture_names_its_signer_too(kind):
    """PNG, JPEG and WebP have places of their own for a manifest."""
    plain = picture(PICTURES[kind])
    assert read(plain) == {"found": False}
    found = read(signed(plain, f"image/{kind}"))
    assert found["source_type"] == SOURCE_TYPE
    certificate = x509.load_der_x509_certificate(base64.b64decode(found["certificate"]))
    assert certificate == x509.load_pem_x509_certificates(RUNWAY.chain)[0]


def test_a_manifest_in_several_packets_of_a_jpeg_is_joined():
    """A segment of a JPEG has at most 64 KB, so a large manifest has several."""
    large = {"label": "org.example.large", "data": {"text": "x" * 200_000}}
    made = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [made]}}
    found = read(signed(picture("JPEG"), "image/jpeg", assertions=[large, actions]))
    assert found["source_type"] == SOURCE_TYPE


def test_a_file_without_a_manifest_has_none(clips):
    """Videos of both containers, an empty file and other formats have no manifest."""
    for name in ("clip.mp4", "clip.webm"):
        assert read((clips / name).read_bytes()) == {"found": False}
    for content in (b"", b"GIF89a", b"RIFF", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        assert read(content) == {"found": False}


def test_the_last_manifest_is_the_active_one():
    """The newest claim and signer count; the source may be stated by an earlier manifest."""
    first = manifest(label="urn:c2pa:first")
    last = manifest(
        {"claim_generator": "editor/1.0"},
        cose({33: b"NEWEST"}),
        {"actions": [{"action": "c2pa.opened"}]},
        label="urn:c2pa:last",
    )
    assert read(mp4(store(first, last))) == {
        "found": True,
        "manifest": "urn:c2pa:last",
        "generator": "editor/1.0",
        "source_type": SOURCE_TYPE,
        "certificate": base64.b64encode(b"NEWEST").decode(),
    }


def test_an_update_manifest_follows_the_original():
    """A store with the purpose "update" holds the active manifest, wherever it is in the file."""
    original = mp4(store(manifest()), purpose=b"original")
    update = mp4(store(manifest(label="urn:c2pa:update", kind=b"c2um")), purpose=b"update")
    for content in (original + update, update + original):
        assert read(content)["manifest"] == "urn:c2pa:update"


def test_a_compressed_manifest_is_not_passed_over():
    """An active manifest that is compressed names no signer, least of all an earlier one."""
    compressed = superbox(b"c2cm", "urn:c2pa:last", box(b"brob", b"compressed"))
    stated = read(mp4(store(manifest(label="urn:c2pa:first"), compressed)))
    assert not stated["found"]
    assert stated["problem"] == "the file has a compressed C2PA manifest, which is not read"


@pytest.mark.parametrize(
    ("claim", "generator"),
    [
        (CLAIM, "Gen-4 4.5"),
        ({"claim_generator_info": [{"name": "Gen-4"}]}, "Gen-4"),
        ({"claim_generator_info": [], "claim_generator": "make_test/0.1"}, "make_test/0.1"),
        ({"claim_generator_info": {"name": 4}}, None),
        ({"claim_generator": ["a", "list"]}, None),
        ([1, 2], None),
    ],
    ids=str,
)
def test_the_generator_is_named_in_the_forms_of_both_versions(claim, generator):
    """Version 1 of the claim has a text or a list, version 2 one map."""
    assert read(mp4(store(manifest(claim, claim_label="c2pa.claim")))).get("generator") == generator


@pytest.mark.parametrize(
    ("signature", "certificate"),
    [
        (cose({33: [b"LEAF", b"ROOT"]}), b"LEAF"),
        (cose({1: -7}, {"x5chain": b"LEAF"}), b"LEAF"),
        (cose([33], {33: [b"LEAF"]}), b"LEAF"),
        ([b"\xff not CBOR", {33: b"LEAF"}], b"LEAF"),
        (["no bytes", {33: b"LEAF"}], b"LEAF"),
        (cose({33: []}), None),
        (cose({33: ["text"]}), None),
        ([b""], None),
        ("text", None),
    ],
    ids=str,
)
def test_the_certificate_is_found_in_either_header(signature, certificate):
    """Earlier versions of C2PA kept the chain in the header that is not protected."""
    found = read(mp4(store(manifest(signature=signature)))).get("certificate")
    assert found == (certificate and base64.b64encode(certificate).decode())


@pytest.mark.parametrize(
    "actions",
    [
        {"actions": []},
        {"actions": {"action": "c2pa.created"}},
        {"actions": ["c2pa.created", {"digitalSourceType": 1}]},
        ["actions"],
    ],
    ids=str,
)
def test_actions_of_another_form_state_no_source(actions):
    """A manifest whose actions cannot be understood is found all the same."""
    found = read(mp4(store(manifest(actions=actions))))
    assert found["found"]
    assert "source_type" not in found


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no box",
        store(),
        store(superbox(b"c2ma", "no claim")),
        store(superbox(b"c2ma", "no signature", superbox(b"c2cl", "c2pa.claim", cbor(CLAIM)))),
        superbox(b"json", "c2pa", manifest()),
        box(b"jumb", b""),
        box(b"jumb", box(b"jumd", b"short")),
        box(b"jumb", box(b"free", bytes(32))),
    ],
    ids=[
        "empty",
        "noise",
        "no manifest",
        "no claim",
        "no signature",
        "another store",
        "no description",
        "short description",
        "another description",
    ],
)
def test_c2pa_data_that_cannot_be_read_is_reported(damaged):
    """A damaged store is no manifest, but it is not the same as none."""
    found = read(mp4(damaged))
    assert found == {"found": False, "problem": "the file has C2PA data that cannot be read"}


def test_assertions_without_labels_or_stores_are_passed_over():
    """A superbox need not have a label, and a manifest need not have assertions."""
    unnamed = box(b"jumb", box(b"jumd", b"cbor" + bytes(12) + b"\0") + cbor(ACTIONS))
    bare = superbox(
        b"c2ma",
        "urn:c2pa:bare",
        unnamed,
        superbox(b"c2cl", "c2pa.claim", b""),
        superbox(b"c2cs", "c2pa.signature", cbor(cose({}))),
    )
    assert read(mp4(store(bare))) == {"found": True, "manifest": "urn:c2pa:bare"}


def test_boxes_state_their_length_in_three_forms():
    """A length may have 64 bits, or last to the end, in a file and in a store."""
    inner = store(manifest())
    wide = (1).to_bytes(4) + b"jumb" + (len(inner) + 8).to_bytes(8) + inner[8:]
    to_end = bytes(4) + inner[4:]
    content = C2PA_UUID + bytes(4) + b"manifest\0" + bytes(8)
    for form in (inner, wide, to_end):
        held = content + form
        outer_wide = (1).to_bytes(4) + b"uuid" + (len(held) + 16).to_bytes(8) + held
        outer_to_end = bytes(4) + b"uuid" + held
        for outer in (box(b"uuid", held), outer_wide, outer_to_end):
            assert read(box(b"ftyp", b"isom") + outer)["manifest"] == "urn:c2pa:one"


def test_other_uuid_boxes_are_passed_over():
    """A box of another type or purpose, such as the tree of hashes, is no manifest."""
    other = box(b"uuid", bytes(16) + store(manifest()))
    assert read(box(b"ftyp", b"isom") + other) == {"found": False}
    assert read(mp4(store(manifest()), purpose=b"merkle")) == {"found": False}


@pytest.mark.parametrize("kind", ["mp4", "png", "jpeg", "webp"])
def test_a_store_that_is_too_large_is_not_read(kind):
    """A manifest of more than 16 MB is reported, and not parsed."""
    large = store(manifest()) + box(b"free", bytes(MAX_STORE))
    if kind == "mp4":
        content = mp4(large)
    elif kind == "png":
        content = b"\x89PNG\r\n\x1a\n" + len(large).to_bytes(4) + b"caBX" + large + bytes(4)
    elif kind == "webp":
        content = b"RIFF" + bytes(4) + b"WEBPC2PA" + len(large).to_bytes(4, "little") + large
    else:
        joined = superbox(b"c2pa", "c2pa", manifest(), box(b"free", bytes(MAX_STORE + 200_000)))
        parts = [joined[8:][at : at + 60_000] for at in range(0, len(joined) - 8, 60_000)]
        packets = (
            b"JP\0\1" + number.to_bytes(4) + joined[:8] + part
            for number, part in enumerate(parts, 1)
        )
        segments = (b"\xff\xeb" + (len(each) + 2).to_bytes(2) + each for each in packets)
        content = b"\xff\xd8\xff\xeb\0\6XT\0\1" + b"".join(segments) + b"\xff\xd9"
    found = read(content)
    assert found["problem"] == "the file has C2PA data of more than 16 MB, which is not read"


def test_a_document_that_is_too_large_or_too_deep_is_left_out():
    """The claim of such a manifest is not decoded; the rest of it is."""
    for claim in ({"claim_generator": "x" * MAX_CBOR}, {"claim_generator": _nested(100)}):
        found = read(mp4(store(manifest(claim))))
        assert found["found"]
        assert "generator" not in found
        assert found["source_type"] == SOURCE_TYPE


def _text_of_noise(count: int) -> bytes:
    """Return a CBOR text of bytes that are not UTF-8; JSON writes each as six."""
    return b"\x7a" + count.to_bytes(4) + b"\xff" * count


def _raw(kind: bytes, label: str, content: bytes) -> bytes:
    return superbox(kind, label, box(b"cbor", content))


def test_an_answer_stays_short_whatever_a_manifest_states(clips, tmp_path):
    """Texts are cut and a huge certificate is ignored, so a paid-for video is still described."""
    noise = _text_of_noise(MAX_CBOR - 100)
    claim = b"\xa1" + cbor2.dumps("claim_generator") + noise
    actions = b"\xa1" + cbor2.dumps("actions") + b"\x81\xa1" + cbor2.dumps("digitalSourceType")
    hostile = superbox(
        b"c2ma",
        "urn:c2pa:" + "\N{GRINNING FACE}" * 100_000,
        superbox(b"c2as", "c2pa.assertions", _raw(b"cbor", "c2pa.actions.v2", actions + noise)),
        _raw(b"c2cl", "c2pa.claim.v2", claim),
        superbox(b"c2cs", "c2pa.signature", cbor(cose({}, {33: bytes(100_000)}))),
    )
    content = (clips / "clip.mp4").read_bytes() + mp4(store(hostile))[16:]
    found = read(content)
    assert len(found["generator"]) == len(found["source_type"]) == manifest_store.MAX_TEXT
    assert "certificate" not in found
    assert len(json.dumps(found)) < 100_000
    file = tmp_path / "hostile.mp4"
    file.write_bytes(content)
    info, _ = examine_output(file, "video")
    assert info.frames == 48
    assert info.provenance is not None
    assert info.provenance.found


@pytest.mark.parametrize("key", [[-1, -2], {"a": 1}, cbor2.CBORTag(4711, 1), 1.5, 7], ids=repr)
def test_a_document_with_keys_that_are_no_texts_is_left_out(key):
    """Keys with equal hashes, which take quadratic time, cannot be chosen."""
    pairs = b"\xa2" + cbor2.dumps("claim_generator") + cbor2.dumps("x")
    claim = _raw(b"c2cl", "c2pa.claim.v2", pairs + cbor2.dumps(key) + b"\0")
    signature = superbox(b"c2cs", "c2pa.signature", cbor(cose({33: b"DER"})))
    found = read(mp4(store(superbox(b"c2ma", "m", claim, signature))))
    assert found["found"]
    assert "generator" not in found
    assert found["certificate"]


def test_keys_with_equal_hashes_cost_little_time():
    """A signature of COSE, whose keys may be integers, is limited by its size."""
    keys = (b"\x8e" + bytes(key) for key in islice(product(b"\x20\x21", repeat=14), 7_000))
    hostile = b"\x82\x40\xb9" + (7_000).to_bytes(2) + b"".join(key + b"\0" for key in keys)
    claim = superbox(b"c2cl", "c2pa.claim.v2", cbor(CLAIM))
    content = mp4(store(superbox(b"c2ma", "m", claim, _raw(b"c2cs", "c2pa.signature", hostile))))
    start = process_time()
    assert read(content)["found"]
    assert process_time() - start < CPU_TIMEOUT / 4


def _nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


def test_many_stores_take_no_more_memory_than_one():
    """A file with one large store after another is read until the first 16 MB."""
    part = MAX_STORE // 2
    large = box(b"uuid", C2PA_UUID + bytes(4) + b"manifest\0" + bytes(part))
    content = io.BytesIO(box(b"ftyp", b"isom") + large * 8)
    tracemalloc.start()
    try:
        assert "more than 16 MB" in read_manifest(content)["problem"]
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_STORE
    finally:
        tracemalloc.stop()


def test_boxes_without_number_in_a_store_are_counted_to_a_limit():
    """A store of tiny boxes is not followed to its end."""
    many = box(b"free", b"") * manifest_store.MAX_ELEMENTS
    assert read(mp4(many + store(manifest())))["problem"]


def test_a_mistake_in_the_reader_costs_no_video(monkeypatch):
    """An unexpected error becomes a finding; an error of the disk is still reported as such."""

    def broken(error: Exception):
        def fail(_file: object) -> list[bytes]:
            raise error

        monkeypatch.setattr(manifest_store, "_stores", fail)

    broken(IndexError())
    assert "cannot be read" in read(b"")["problem"]
    broken(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output error"):
        read(b"")


VALID = mp4(store(manifest(label="urn:c2pa:first"), manifest()))


@given(st.integers(0, len(VALID)))
def test_a_cut_at_any_byte_does_no_harm(end):
    """A truncated file has its manifest, or none, and never raises."""
    found = read(VALID[:end])
    assert found["found"] in {True, False}


@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=8)), max_size=6
    )
)
def test_changed_bytes_do_no_harm(changes):
    """Whatever bytes are replaced, the reader returns, and all that it returns is text."""
    content = bytearray(VALID)
    for at, new in changes:
        content[at : at + len(new)] = new
    found = read(bytes(content))
    assert all(isinstance(value, str) for name, value in found.items() if name != "found")


BEGINNINGS = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x08ftyp")


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=300))
def test_noise_does_no_harm(beginning, noise):
    """Random bytes after the beginning of any format contain no manifest."""
    assert not read(beginning + noise)["found"]


@given(st.binary(max_size=200))
def test_a_store_of_noise_does_no_harm(noise):
    """Random bytes as a store, as a manifest, and as CBOR are read without an error."""
    read(mp4(noise))
    read(mp4(store(box(b"jumb", noise))))
    parts = [superbox(b"c2cl", "c2pa.claim", box(b"cbor", noise))]
    parts.append(superbox(b"c2cs", "c2pa.signature", box(b"cbor", noise)))
    actions = superbox(b"cbor", "c2pa.actions", box(b"cbor", noise))
    parts.append(superbox(b"c2as", "c2pa.assertions", actions))
    assert read(mp4(store(superbox(b"c2ma", "m", *parts))))["found"]


@pytest.mark.parametrize("at", [8, 1 << 31, 1 << 62, (1 << 64) - 1], ids=hex)
@pytest.mark.parametrize("kind", [b"uuid", b"mdat"])
def test_a_length_without_end_does_no_harm(kind, at):
    """A box that states any length takes no more memory than the file has bytes."""
    held = C2PA_UUID + bytes(4) + b"manifest\0" + bytes(8)
    content = box(b"ftyp", b"isom") + (1).to_bytes(4) + kind + at.to_bytes(8) + held
    tracemalloc.start()
    try:
        assert not read(content)["found"]
        assert tracemalloc.get_traced_memory()[1] < MAX_STORE + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        box(b"free", b"") * 200_000,
        b"\xff\xd8" + b"\xff\xe0\0\2" * 200_000,
        b"\x89PNG\r\n\x1a\n" + (bytes(4) + b"tEXt" + bytes(4)) * 200_000,
        b"RIFF\0\0\0\0WEBP" + (b"EXIF" + bytes(4)) * 200_000,
    ],
    ids=["mp4", "jpeg", "png", "webp"],
)
def test_elements_without_number_are_counted_to_a_limit(content, monkeypatch):
    """A file of tiny elements is not followed to its end."""
    reads = []
    real = manifest_store._read
    monkeypatch.setattr(manifest_store, "_read", lambda *at: reads.append(at) or real(*at))
    assert read(content) == {"found": False}
    assert len(reads) <= manifest_store.MAX_ELEMENTS + 1
