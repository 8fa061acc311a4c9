# SPDX-License-Identifier: Apache-2.0
"""The gallery as text: it shows all results, and escapes all of them."""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi import runway
from prefect_cometapi.flows.batch.gallery import gallery
from prefect_cometapi.runway.batch.models import ItemResult, Outcome

EMPTY = {"meta", "link", "input", "img", "rect"}
PICTURE = "data:image/jpeg;base64,/9j/4AAQ"
STORED = ItemResult(
    id="sku-1",
    outcome=Outcome.STORED,
    idempotency_key="november/sku-1",
    task_id="3d957031",
    route="image_to_video",
    model="gen4_turbo",
    prompt="slow zoom",
    uri="/out/videos/sku-1.mp4",
    poster="/out/videos/sku-1.jpg",
    sha256="ab" * 32,
    size=2_345_678,
    width=1280,
    height=768,
    duration=5.04,
    billed_seconds=5,
    submitted_at=datetime(2026, 11, 21, 14, 3, tzinfo=UTC),
    waited=72.4,
    polls=14,
)

hostile = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            [
                *("<", ">", '"', "'", "&", "`", "=", "/", " ", "\n", "\0", "\ud800", "\u202e"),
                *("</script>", "</style>", "<!--", "-->", "]]>", "<script>", "<svg onload=x>"),
                *("{{ 7*7 }}", "{% raw %}", " onerror=x ", "javascript:", "&lt;", "&#60;", "x"),
            ]
        ),
        min_size=3,
    ).map("".join),
).map("x{}".format)


class Page(HTMLParser):
    """Parsed page as a browser sees it: elements with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        self.raw.get(inside, self.texts).append(data)

    @property
    def skeleton(self) -> list[tuple[str, list[str]]]:
        return [(tag, list(attributes)) for tag, attributes in self.elements]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, attribute: str) -> list[str]:
        return [
            found[attribute] for name, found in self.elements if name == tag and attribute in found
        ]


def page_of(*results: ItemResult, **options) -> Page:
    return Page(gallery(results, **{"title": "November", "base": "/out", **options}))


def an_item(outcome: Outcome = Outcome.FAILED, **fields) -> ItemResult:
    return ItemResult(
        **{"id": "sku-2", "outcome": outcome, "idempotency_key": "november/sku-2", **fields}
    )


# Untrusted text stays text.


@given(hostile)
def test_no_text_becomes_an_element_or_an_attribute(text):
    """A page with hostile texts has the same elements and attributes as one with plain texts."""
    names = [
        "id",
        "prompt",
        "model",
        "idempotency_key",
        "task_id",
        "sha256",
        "route",
        "error",
        "message",
    ]

    def page(text: str, folder: str, poster: str | None) -> Page:
        outcome = Outcome.STORED if folder else Outcome.FAILED
        update = {**dict.fromkeys(names, text), "poster": poster, "outcome": outcome}
        update["uri"] = folder and f"{folder}{text}"
        return page_of(STORED.model_copy(update=update), title=text)

    for shape in product(["", "/out/", "s3://bucket/"], [None, "/out/a.jpg"]):
        read = page(text, *shape)
        assert read.skeleton == page("x", *shape).skeleton
        assert read.open == []


@given(uri=hostile, poster=hostile, embedded=hostile, base=hostile, bare=st.booleans())
def test_no_address_leads_elsewhere_or_acts(uri, poster, embedded, base, bare):
    """Links and pictures lead only to files, web addresses or embedded pictures."""
    places = [place[1:] if bare else place for place in (uri, poster, embedded, base)]
    item = STORED.model_copy(update={"uri": places[0], "poster": places[1]})
    read = page_of(item, posters={"sku-1": places[2]}, base=places[3])
    for found in read.all("a", "href") + read.all("img", "src"):
        assert re.match(r"(https?://|file:///|data:image/jpeg;base64,|[\w.~%-])", found)
        assert not re.match(
            r"(?!https?:|file:|data:image/)[a-z][a-z0-9+.-]*:", found, re.IGNORECASE
        )
    assert not [name for _, found in read.elements for name in found if name.startswith("on")]


@pytest.mark.parametrize(
    "embedded",
    [
        "data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=",
        "data:text/html;base64,PGI+",
        "data:image/png,<svg onload=alert(1)>",
        "javascript:alert(1)",
        "https://elsewhere.example/poster.jpg",
    ],
)
def test_only_pictures_are_embedded(embedded):
    """Only a JPEG, PNG, WebP, GIF or AVIF is embedded as a picture."""
    item = STORED.model_copy(update={"uri": "s3://bucket/a.mp4", "poster": None})
    assert page_of(item, posters={"sku-1": embedded}).all("img", "src") == []


def test_only_the_page_s_own_script_and_style_may_act():
    """The policy allows one script and one style, identified by their hashes."""
    read = page_of(STORED, title="<script>alert(1)</script>")
    ((policy),) = [
        found["content"] for tag, found in read.elements if "http-equiv" in found and tag == "meta"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, inside in (("script-src", "script"), ("style-src", "style")):
        (text,) = read.raw[inside]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["media-src"] == "'self' file:"
    assert "unsafe" not in policy
    assert not [found for _, found in read.elements if "style" in found]


def test_a_page_without_videos_may_load_none():
    """The policy of a page allows only the sources that its batch needs."""
    assert "media-src &#39;none&#39;" in gallery([an_item()], title="", base="/out")
    cdn = STORED.model_copy(update={"uri": "https://cdn.example/v/a.mp4"})
    assert "media-src https://cdn.example;" in gallery([cdn], title="", base="/out")


def test_a_page_loads_nothing_by_itself():
    """No script, style, font or picture comes from elsewhere."""
    read = page_of(STORED)
    assert read.all("script", "src") == read.all("iframe", "src") == []
    assert read.all("link", "href") == ["data:,"]
    assert "url(" not in "".join(read.raw["style"])
    assert "@import" not in "".join(read.raw["style"])
    assert not re.search(r"https?:", "".join(read.raw["script"]))


def test_a_page_contains_no_secret():
    """Keys, tokens and passwords in messages and addresses are redacted."""
    item = an_item(
        message="403 for https://cdn.example/a.mp4?token=t0ken with sk-abcdefghijkl",
        uri="sftp://me:s3cret@host/a.mp4",
    )
    html = gallery([item], title="November", base="/out")
    assert "cdn.example" in html
    assert not re.search(r"t0ken|sk-abc|s3cret", html)


@given(hostile)
def test_a_page_can_always_be_written(text):
    """Invalid characters are replaced, so that the file is always UTF-8."""
    html = gallery([an_item(message=text, prompt=text)], title=text, base="/out")
    assert "\0" not in html
    html.encode("utf-8")


# All results are shown.


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_shown_counted_and_filtered_by(outcome):
    """Each item shows its outcome, and each outcome has a filter button with its count."""
    read = page_of(*[an_item(outcome, id=f"sku-{at}") for at in range(3)], STORED)
    assert read.all("article", "data-outcome") == [outcome] * 3 + ["stored"]
    stored = 4 if outcome is Outcome.STORED else 1
    assert f"stored {stored}" in read.text
    assert f"{outcome} {4 if stored == 4 else 3}" in read.text
    assert outcome in read.all("button", "value")


def test_a_stored_video_is_shown_with_all_that_is_known():
    """A stored video has its poster, id, prompt, model, size, length, waiting time and ids."""
    read = page_of(STORED)
    assert read.all("a", "href") == ["videos/sku-1.mp4"]
    assert read.all("img", "src") == ["videos/sku-1.jpg"]
    assert read.all("img", "alt") == ["Play sku-1"]
    assert read.all("img", "loading") == ["lazy"]
    for shown in [
        *("sku-1 stored", "slow zoom", "gen4_turbo · 1280 × 768 · 2.3 MB", "5.0 s"),  # noqa: RUF001 -- the sign for it
        *("took 1 min 12 s · 14 polls", "november/sku-1", "3d957031", "ab" * 32),
        *("/out/videos/sku-1.mp4", "image to video", "submitted 2026-11-21 14:03:00 UTC"),
        "billed for 5 s",
    ]:
        assert shown in read.text


def test_the_header_sums_the_batch_up():
    """The header sums up stored videos, seconds, billed seconds, bytes and the time of writing."""
    written = datetime(2026, 11, 21, 15, 30, tzinfo=timezone(timedelta(hours=1)))
    clips = [STORED.model_copy(update={"id": f"sku-{at}"}) for at in range(1500)]
    read = page_of(*clips, an_item(duration=99.0, billed_seconds=7.5), written_at=written)
    for shown in [
        *("November", "1,500 of 1,501 videos stored", "7,560 s of video (2 h 6 min)"),
        *("billed for 7,507.5 s", "3.5 GB", "written 2026-11-21 14:30 UTC", "All 1,501"),
    ]:
        assert shown in read.text


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in (getattr(runway, name) for name in runway.__all__)
        if isinstance(kind, type) and issubclass(kind, runway.CometAPIError) and kind.advice
    ],
)
def test_a_failed_item_says_what_to_do(kind):
    """A failed item shows its kind of error, its message, the charge and the next step."""
    item = an_item(error=kind.__name__, message="It went wrong.", task_id="3d957031")
    error = kind("").with_context(idempotency_key=item.idempotency_key, task_id=item.task_id)
    read = page_of(item)
    for shown in (kind.__name__, "It went wrong.", f"Next: {error.hint()}"):
        assert " ".join(shown.split()) in read.text
    assert not error.money or f"Money: {error.money}" in read.text


@pytest.mark.parametrize(
    ("item", "step"),
    [
        (an_item(error="OSError"), "Next: prefect-cometapi ledger show november/sku-2"),
        (an_item(Outcome.UNCERTAIN), "Next: prefect-cometapi ledger reconcile"),
        (an_item(Outcome.INVALID, error="ValidationError"), "Next: correct the request"),
        (an_item(Outcome.NOT_BOUGHT), "Next: raise the limit"),
    ],
)
def test_an_item_without_a_known_error_still_says_what_to_do(item, step):
    """An item without a known error still has a next step for its outcome."""
    assert step in page_of(item).text


def test_an_error_s_own_advice_is_not_repeated():
    """A message that already names the charge and the next step has them shown once."""
    error = runway.SubmissionUncertain("no answer").with_context(idempotency_key="november/sku-2")
    item = an_item(Outcome.UNCERTAIN, error="SubmissionUncertain", message=str(error))
    text = page_of(item).text
    assert text.count("Money:") == text.count("Next:") == 1
    assert "SubmissionUncertain no answer Money: possibly charged" in text


def test_a_remark_on_a_stored_video_is_shown_beside_it():
    """A stored video with a remark stays playable."""
    read = page_of(STORED.model_copy(update={"message": "The poster could not be drawn."}))
    assert read.all("a", "href") == ["videos/sku-1.mp4"]
    assert "The poster could not be drawn." in read.text


def test_a_video_in_an_object_store_shows_its_picture_and_its_address():
    """A video in an object store has its picture and an address to copy instead of a link."""
    item = STORED.model_copy(update={"uri": "s3://bucket/a.mp4", "poster": "s3://bucket/a.jpg"})
    read = page_of(item, posters={"sku-1": PICTURE})
    assert read.all("a", "href") == []
    assert read.all("img", "src") == [PICTURE]
    assert read.all("img", "alt") == ["Poster of sku-1"]
    assert "s3://bucket/a.mp4" in read.text
    assert "Copy the location of sku-1" in read.all("button", "aria-label")


def test_a_gallery_in_the_object_store_itself_plays_what_lies_beside_it():
    """A gallery beside its videos in an object store plays them, copied or served."""
    item = STORED.model_copy(update={"uri": "s3://bucket/v/a.mp4", "poster": None})
    assert page_of(item, base="s3://bucket/v").all("a", "href") == ["a.mp4"]


@pytest.mark.parametrize(
    ("sizes", "frame"),
    [
        ([], "16/9"),
        ([(1280, 768), (1920, 1152), (720, 1280)], "5/3"),
        ([(720, 1280)], "9/16"),
        ([(10000, 1)], "7/3"),
        ([(1, 10000), (0, 768)], "9/16"),
    ],
)
def test_the_posters_share_the_shape_of_most_videos(sizes, frame):
    """Posters have the shape of most videos, and one odd size does not break the layout."""
    items = [
        STORED.model_copy(update={"width": width, "height": height}) for width, height in sizes
    ]
    assert f"--frame:{frame}}}" in gallery(items, title="", base="/out")


@given(
    st.builds(
        ItemResult,
        id=st.text(),
        outcome=st.sampled_from(Outcome),
        size=st.none() | st.integers(),
        width=st.none() | st.integers(),
        height=st.none() | st.integers(),
        duration=st.none() | st.floats(),
        billed_seconds=st.none() | st.floats(),
        waited=st.none() | st.floats(),
        polls=st.none() | st.integers(),
    )
)
def test_no_number_keeps_a_page_from_being_written(item):
    """Unknown, infinite or absurd numbers never prevent a page from being written."""
    assert page_of(item, item).all("article", "role") == ["listitem"] * 2


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.6, "1 min"), (72.4, "1 min 12 s"), (3600, "1 h"), (7390, "2 h 3 min")],
)
def test_waits_read_well(seconds, shown):
    """Waiting times are shown in common units."""
    text = page_of(STORED.model_copy(update={"waited": seconds})).text
    assert f"took {shown} · 14 polls" in text


def test_an_empty_batch_says_so():
    """An empty batch gives a page with one sentence."""
    read = page_of()
    assert "This batch has no items." in read.text
    assert "0 of 0 videos stored" in read.text


def test_ten_thousand_items_stay_a_small_file():
    """A card takes about a kilobyte, so ten thousand items stay a small file."""
    one, many = (
        len(gallery([STORED] * count, title="", base="/out").encode()) for count in (1, 1001)
    )
    assert (many - one) / 1000 < 1100


@pytest.mark.parametrize(
    ("c2pa", "signer", "line"),
    [
        (True, "RUNWAY AI, INC.", "C2PA, signed by RUNWAY AI, INC. (not verified)"),
        (True, None, "C2PA, signed by an unnamed signer (not verified)"),
        (False, None, "no C2PA manifest"),
        (None, None, None),
    ],
    ids=str,
)
def test_a_card_names_the_signer_of_its_file(c2pa, signer, line):
    """A small line says whether the file has a C2PA manifest; an older result has no such line."""
    result = STORED.model_copy(update={"c2pa": c2pa, "c2pa_signer": signer})
    page = gallery([result], title="x", base="/out")
    assert "C2PA" not in page if line is None else line in page
