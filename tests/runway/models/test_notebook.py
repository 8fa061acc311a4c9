# SPDX-License-Identifier: Apache-2.0
"""HTML of results in notebooks."""

import base64
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import GenerationResult, Status, StoredVideo
from prefect_cometapi.runway.models.notebook import MAX_EMBEDDED, browser_address, poster_address


def stored(uri: str, poster: str | None = None, media_type: str = "video/mp4") -> StoredVideo:
    """Return a stored video at a location."""
    return StoredVideo(
        uri=uri,
        poster=poster,
        sidecar=f"{uri}.json",
        sha256="0" * 64,
        size=1_234_567,
        width=1280,
        height=720,
        duration=5.0,
        frames=120,
        codec="h264",
        media_type=media_type,
    )


def result_of(*videos: StoredVideo, key: str = "cat/teaser") -> GenerationResult:
    """Return a result with videos."""
    return GenerationResult(
        idempotency_key=key,
        task_id="task-17",
        status=Status.SUCCEEDED if videos else Status.PENDING,
        videos=videos,
        polls=3,
        waited=1.0,
        submitted_at=datetime.now(UTC),
        cost=0.256,
        currency="USD",
        cost_source="estimated",
    )


class Elements(HTMLParser):
    """Elements of a text of HTML, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def __getitem__(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_a_notebook_shows_poster_player_and_facts(tmp_path, monkeypatch):
    """A local video has a player with a relative path, an embedded poster, and its facts."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my videos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"jpeg")
    video = stored(str(folder / "a.mp4"), str(folder / "a.jpg"))
    shown = Elements(result_of(video)._repr_html_())
    (source,) = shown["source"]
    assert source == {"src": "my%20videos/a.mp4", "type": "video/mp4"}
    (player,) = shown["video"]
    embedded = base64.b64encode(b"jpeg").decode()
    assert player["poster"] == f"data:image/jpeg;base64,{embedded}"
    for fact in (video.uri, "5.0 s", "1280", "succeeded", "task-17", "cat/teaser", "0.256 USD"):
        assert fact in shown.words


def test_a_result_without_a_video_shows_its_facts():
    """The result of a flow that does not wait shows its status and its task id."""
    shown = Elements(result_of()._repr_html_())
    assert not shown["video"]
    assert "pending" in shown.words
    assert "task-17" in shown.words


def test_a_picture_is_shown_as_a_picture(tmp_path):
    """A picture has no player and no duration; its scaled copy or the file itself is shown."""
    scaled = tmp_path / "scaled.jpg"
    scaled.write_bytes(b"jpeg")
    shown = Elements(stored("/a.png", str(scaled), "image/png")._repr_html_())
    assert [each["src"] for each in shown["img"]] == [poster_address(str(scaled))]
    shown = Elements(stored("/a.png", None, "image/png")._repr_html_())
    assert [each["src"] for each in shown["img"]] == ["/a.png"]
    assert "duration" not in shown.words


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("https://cdn.example.com/a.mp4", "https://cdn.example.com/a.mp4"),
        ("/elsewhere/100 %.mp4", "/elsewhere/100%20%25.mp4"),
        ("s3://bucket/a.mp4", None),
        ("s3-bucket/mine/a.mp4", None),
        ("javascript:alert(1)", None),
        ("javascript://alert(1)", None),
    ],
)
def test_only_what_a_browser_can_fetch_has_an_address(location, address):
    """A web URL and a path have an address; an object of a store and a script have none."""
    assert browser_address(location) == address


def test_a_video_that_no_browser_can_fetch_shows_its_poster(tmp_path):
    """A video in an object store has no player; a poster is shown if there is one."""
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    shown = Elements(stored("s3://bucket/a.mp4", str(tmp_path / "a.jpg"))._repr_html_())
    assert not shown["video"]
    assert len(shown["img"]) == 1
    assert "s3://bucket/a.mp4" in shown.words
    shown = Elements(stored("s3://bucket/a.mp4", "s3://bucket/a.jpg")._repr_html_())
    assert not shown["img"]
    shown = Elements(stored("https://example.com/a.mp4")._repr_html_())
    assert "poster" not in shown["video"][0]


def test_only_a_small_poster_is_embedded(tmp_path):
    """A large poster is shown by its path, a missing one is left out."""
    large: Path = tmp_path / "large.jpg"
    large.write_bytes(bytes(MAX_EMBEDDED + 1))
    assert poster_address(str(large)) == browser_address(str(large))
    assert poster_address(str(tmp_path / "missing.jpg")) is None
    assert poster_address("https://example.com/a.jpg") == "https://example.com/a.jpg"


@given(st.text(max_size=60), st.sampled_from(["/", "https://", "s3://", ""]))
def test_no_location_breaks_out_of_the_html(text, start):
    """Whatever a location and a media type contain, the HTML has the same elements."""
    nasty = f'{start}{text}"><script>alert(1)</script>'
    if "://" in start:
        nasty += "?X-Amz-Signature=canary"
    shown = result_of(stored(nasty, nasty, f"video/{text}"), key=text or "k")._repr_html_()
    assert {tag for tag, _ in Elements(shown).found} <= {
        *("div", "video", "source", "img", "table", "tr", "th", "td")
    }
    assert "canary" not in shown
