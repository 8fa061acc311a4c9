# SPDX-License-Identifier: Apache-2.0
"""A source is checked before any money is spent, and sent in the form that fits its size."""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    ImageToVideoRequest,
    InvalidOutput,
    InvalidSource,
    SourceUnavailable,
    StorageError,
    VideoToVideoRequest,
)
from prefect_cometapi.runway.models.media_types import MAX_DATA_BYTES
from prefect_cometapi.runway.models.sources import StoredSource
from prefect_cometapi.runway.sources import preparation
from prefect_cometapi.runway.sources.preparation import (
    SUBMISSION_SECONDS,
    PreparedRequest,
    prepare,
    read_source,
    validity,
)

from ...pictures import animation, noise, picture

SIGNED = "https://storage.example.com/bucket/cat?X-Amz-Signature=canary"


@dataclass
class File:
    """File in memory, with or without signatures."""

    content: bytes
    signs: bool = False
    says_size: bool = True
    url: str = SIGNED
    seconds: list[int] = field(default_factory=list)
    types: list[str] = field(default_factory=list)

    @property
    def size(self) -> int | None:
        return len(self.content) if self.says_size else None

    @property
    def signer(self) -> Any:
        return self if self.signs else None

    def read(self, limit: int) -> bytes:
        return self.content[:limit]

    def version(self) -> str:
        return "etag:1"

    def signed_url(self, seconds: int, media_type: str) -> str:
        self.seconds.append(seconds)
        self.types.append(media_type)
        return self.url


def image(address: str = "s3://bucket/cat.png") -> StoredSource:
    return StoredSource(address, "image")


def video(address: str = "s3://bucket/cat.mp4") -> StoredSource:
    return StoredSource(address, "video")


def jpeg_of(size: int) -> bytes:
    """Return content of a size that begins like a JPEG."""
    return b"\xff\xd8\xff".ljust(size, b"\0")


def problem_of(file: File, source: StoredSource) -> str:
    with pytest.raises(InvalidSource) as caught:
        read_source(file, source, 60)
    assert "Money: nothing was charged." in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_small_image_goes_as_a_data_uri_of_its_content(kind, signs):
    """The label is the type of the content, and the version its hash."""
    content = picture(kind)
    read = read_source(File(content, signs), image("cat.bin"), 60)
    head, _, data = read.sent.partition(",")
    assert head == f"data:image/{kind.lower()};base64"
    assert base64.b64decode(data) == content
    assert read.version == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert read.summary == f"image/{kind.lower()}, 64 x 48, {len(content):,} bytes"
    assert read.sent not in repr(read)


def test_a_video_is_inspected_and_goes_as_a_data_uri(clips):
    """The summary has size and seconds, which the decoder process has read."""
    read = read_source(File((clips / "clip.mp4").read_bytes()), video(), 60)
    assert read.sent.startswith("data:video/mp4;base64,")
    assert " s, " in read.summary


def test_a_video_that_the_decoder_does_not_know_is_sent_unchecked():
    """A container that Runway takes and the decoder does not open is left to the service."""
    assert read_source(File(b"OggS rest"), video(), 60).summary == "video/ogg, 9 bytes"


def test_an_animated_webp_is_sent_unchecked():
    """FFmpeg cannot decode it, which says nothing about the service."""
    read = read_source(File(animation("WEBP")), image(), 60)
    assert read.summary.startswith("image/webp, ")
    assert " x " not in read.summary


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_half_an_image_is_not_sent(kind):
    """A picture whose upload broke off would be charged for nothing."""
    content = picture(kind, 640, 480)
    assert "cannot be decoded" in problem_of(File(content[: len(content) // 2]), image())


def test_half_a_video_is_not_sent(clips):
    """The same holds for a video."""
    content = (clips / "clip.mp4").read_bytes()
    message = problem_of(File(content[: len(content) * 3 // 4]), video())
    assert message.startswith("s3://bucket/cat.mp4 cannot be used: it is ")


@pytest.mark.parametrize(
    ("content", "source", "why"),
    [
        (b"", image(), "is empty"),
        (b"<html>", image(), "its content is not a JPEG, PNG or WebP"),
        (animation("GIF"), image(), "it is image/gif"),
        (picture(), video(), "it is image/png, but the field takes a video"),
        (b"\0\0\0\x18ftypisom", image(), "it is video/mp4, but the field takes an image"),
    ],
)
def test_what_the_service_does_not_take_is_refused(content, source, why):
    """Each message names the address and what is there."""
    message = problem_of(File(content), source)
    assert message.startswith(str(source))
    assert why in message


@pytest.mark.parametrize("says_size", [True, False])
def test_a_large_file_without_signatures_is_too_large(says_size):
    """The message has the size and both limits."""
    size = MAX_DATA_BYTES["image"] + 1
    shown = f"{size:,}" if says_size else "more than 5,000,000"
    message = problem_of(File(jpeg_of(size), says_size=says_size), image("/data/cat.png"))
    assert f"is too large: it has {shown} bytes, and 5,000,000 bytes of image" in message
    assert "signs URLs (s3://, gs://, az://) or an https:// URL allows 16,000,000" in message


@pytest.mark.parametrize("says_size", [True, False])
def test_a_large_file_goes_as_a_signed_url(says_size):
    """Its version is the ETag, since it is not read as a whole."""
    file = File(noise(5_200_000), signs=True, says_size=says_size)
    read = read_source(file, image(), 60)
    assert (read.sent, read.version) == (SIGNED, "etag:1")
    assert (file.seconds, file.types) == ([60], ["image/png"])
    assert "canary" not in repr(read)


def test_a_file_whose_base64_form_is_too_large_goes_as_a_signed_url_if_there_can_be_one():
    """Both readings of the limit are respected where that is possible."""
    content = noise(4_500_000)
    read = read_source(File(content, signs=True), image(), 60)
    assert read.sent == SIGNED
    assert read.version == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert read_source(File(content), image(), 60).sent.startswith("data:image/png")


def test_a_file_that_is_too_large_for_a_url_is_refused():
    """The limit of a URL is that of Runway's docs."""
    message = problem_of(File(jpeg_of(16_000_001), signs=True), image())
    assert message.endswith("it has 16,000,001 bytes, and 16,000,000 bytes of image are allowed")


def test_a_large_file_that_is_not_an_image_is_refused():
    """The beginning of a large file is enough to recognise it."""
    assert "its content is not" in problem_of(File(bytes(5_000_001), signs=True), image())


@pytest.mark.parametrize("signs", [True, False])
def test_a_file_of_a_wrong_type_is_told_as_such_however_large(signs):
    """A smaller one would be refused, too."""
    film = b"\0\0\0\x18ftypisom".ljust(16_000_001, b"\0")
    assert "it is video/mp4, but the field takes" in problem_of(File(film, signs), image())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://minio.internal:9000/cat?X-Amz-Signature=canary", "must be an https:// URL"),
        ("https://10.0.0.7/cat?X-Amz-Signature=canary", "must be a name"),
        (f"https://h/{'x' * 2048}?X-Amz-Signature=canary", "2048 characters"),
    ],
)
def test_a_signed_url_that_nobody_can_fetch_is_not_sent(url, why):
    """An object store in a private network signs URLs that only the network can reach."""
    file = File(noise(5_200_000), signs=True, url=url)
    with pytest.raises(SourceUnavailable, match="CometAPI cannot fetch") as caught:
        read_source(file, image(), 60)
    assert why in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("error", [StorageError("no decoder"), OSError(28, "No space left")])
def test_a_machine_that_cannot_check_a_source_buys_nothing(monkeypatch, error):
    """The reason is not reported as one of a video that is paid for."""

    def fail(_path):
        raise error

    monkeypatch.setattr(preparation, "inspect_image", fail)
    with pytest.raises(SourceUnavailable, match=r"no decoder|No space left") as caught:
        read_source(File(picture()), image(), 60)
    assert "Money: nothing was charged." in str(caught.value)


def test_the_words_of_the_decoder_are_about_the_source(monkeypatch):
    """The decoder calls each file an output."""

    def fail(_path):
        raise InvalidOutput("the output broke the decoder")

    monkeypatch.setattr(preparation, "inspect_image", fail)
    assert problem_of(File(picture()), image()).endswith("cannot be used: it broke the decoder")


@given(timeout=st.floats(min_value=0.001, max_value=1e9))
def test_a_signature_outlasts_the_submission_and_the_wait(timeout):
    """Up to the seven days that S3 allows, and never less than an hour."""
    seconds = validity(timeout)
    assert 3600 <= seconds <= 7 * 24 * 3600
    assert seconds >= min(SUBMISSION_SECONDS + timeout, 7 * 24 * 3600)


async def test_each_source_of_a_request_is_replaced_in_its_body():
    """Addresses become what is sent, and everything else stays."""
    request = VideoToVideoRequest.model_validate(
        {
            "videoUri": "https://example.com/a.mp4",
            "promptText": "s3://bucket/cat.png",
            "references": [{"uri": "s3://bucket/cat.png"}],
        }
    )

    async def open_source(_source: StoredSource) -> File:
        return File(picture())

    prepared = await prepare(request, open_source, 60)
    body = prepared.body()
    assert body["references"][0].pop("uri").startswith("data:image/png;base64,")
    assert body == {
        "videoUri": "https://example.com/a.mp4",
        "promptText": "s3://bucket/cat.png",
        "model": "gen4_aleph",
        "references": [{"type": "image"}],
    }
    assert list(prepared.versions) == ["references[0].uri"]
    assert "base64" not in repr(prepared)


async def test_a_problem_names_the_field():
    """A request with several sources says which one cannot be used."""
    request = ImageToVideoRequest(prompt_image="cat.png")

    async def open_source(_source: StoredSource) -> File:
        return File(b"text")

    with pytest.raises(InvalidSource, match=r"promptImage: cat\.png cannot be used"):
        await prepare(request, open_source, 60)


def test_a_request_that_cannot_be_sent_says_why():
    """The body of such a request is its problem."""
    problem = SourceUnavailable("gone")
    request = ImageToVideoRequest(prompt_image="cat.png")
    with pytest.raises(SourceUnavailable, match="gone"):
        PreparedRequest(request, problem=problem).body()
