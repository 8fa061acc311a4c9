# SPDX-License-Identifier: Apache-2.0
"""The gallery in a real browser, with real videos, opened as a file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from prefect_cometapi.flows.batch.gallery import NAME, gallery
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.media.inspector import examine_output
from prefect_cometapi.sandbox.clips.render import Recipe, render

from ...waiting import until

pytestmark = pytest.mark.heavy

NAMES = ("dawn", "noon", "dusk", "night", "storm", "snow")
ATTACKS = (
    "<script>window.hit = 1</script>",
    '"><img src=x onerror="window.hit = 1">',
    "' onfocus='window.hit = 1' autofocus='",
    "</title></style></script><svg onload=window.hit=1>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "javascript:window.hit=1//",
    '<meta http-equiv="refresh" content="0;url=javascript:window.hit=1">',
    "<a href='javascript:window.hit=1' class='play stage'>x</a>",
)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
LISTEN = """
() => {
  window.advanced = new Promise((done, fail) => {
    document.addEventListener("timeupdate", (event) =>
      event.target.currentTime > 0 && done(event.target.currentTime), true);
    setTimeout(() => fail(new Error("no video plays")), 20000);
  });
}
"""
CONTRASTS = """
(selectors) => {
  const parts = (colour) => {
    const numbers = colour.match(/[\\d.]+/g).map(Number);
    return colour.startsWith("color(") ? [...numbers.slice(0, 3).map((n) => 255 * n), 1] : numbers;
  };
  const light = ([red, green, blue]) => [red, green, blue].map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    const colour = parts(getComputedStyle(element).backgroundColor);
    return (colour[3] ?? 1) === 1 ? colour : ground(element.parentElement);
  };
  return [...document.querySelectorAll(selectors)].map((element) => {
    const [dark, bright] = [parts(getComputedStyle(element).color), ground(element)]
      .map(light).sort((a, b) => a - b);
    return [element.textContent, (bright + 0.05) / (dark + 0.05)];
  });
}
"""


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[ItemResult]:
    """Create six stored videos with their posters, in a folder of their own."""
    folder = tmp_path_factory.mktemp("batch") / "videos"
    folder.mkdir()
    return [made(folder, name) for name in NAMES]


def made(folder: Path, name: str) -> ItemResult:
    video, poster = folder / f"{name} #1.mp4", folder / f"{name} #1.jpg"
    recipe = Recipe("image_to_video", name, name, 1, 320, 192, 2)
    video.write_bytes(render(recipe, None))
    info, picture = examine_output(video, "video", poster_width=160)
    poster.write_bytes(picture)
    return ItemResult(
        id=f"lake-{name}",
        outcome=Outcome.STORED,
        idempotency_key=f"lakes/{name}",
        prompt=f"A lake, {name.upper()}.",
        uri=str(video),
        poster=str(poster),
        width=info.width,
        height=info.height,
        duration=info.duration,
    )


@pytest.fixture(scope="module")
def written(clips) -> Path:
    """Write a page of the six videos and one item per other outcome, beside their folder."""
    others = [
        ItemResult(id=f"no-{at}", outcome=outcome, idempotency_key=f"k{at}", message="It went so.")
        for at, outcome in enumerate(set(Outcome) - {Outcome.STORED})
    ]
    return write(Path(clips[0].uri or "").parents[1], [*clips, *others])


def write(folder: Path, results: list[ItemResult], **options) -> Path:
    page = folder / NAME
    text = gallery(results, **{"title": "Lakes", "base": str(folder), **options})
    page.write_text(text, encoding="utf-8")
    return page


class Opened:
    """Page in the browser, with its requests and its errors."""

    def __init__(self, browser: Browser, place: Path, **options) -> None:
        self.context: BrowserContext = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.add_init_script(WATCH)
        self.page.goto(place.as_uri())

    @property
    def cards(self):
        return self.page.locator(".card:visible")

    def ids(self) -> list[str]:
        return self.page.locator(".card:visible .id").all_text_contents()


@pytest.fixture
def opened(browser, written) -> Iterator[Opened]:
    opened = Opened(browser, written)
    yield opened
    assert opened.complaints == []
    assert opened.page.evaluate("window.violations") == []
    opened.context.close()


def test_a_page_opens_from_a_file_and_asks_for_nothing_else(opened, written):
    """A page from a file shows its posters, loads no video, and sends no request elsewhere."""
    # The page's policy forbids what Playwright's own wait evaluates in it later.
    are_loaded = "[...document.images].every((image) => image.naturalWidth === 160)"
    until(lambda: opened.page.evaluate(are_loaded), "all posters")
    here = written.parent.as_uri()
    asked = [url for url in opened.requests if not url.startswith("data:")]
    assert len([url for url in asked if url.endswith(".jpg")]) == len(NAMES)
    assert all(url.startswith(here) for url in asked)
    assert not [url for url in asked if url.endswith(".mp4")]


def test_a_click_plays_the_video_in_its_place(opened):
    """A click starts a player with controls in place, and stops the one that was playing."""
    opened.page.evaluate(LISTEN)
    opened.page.get_by_role("link", name="Play lake-dawn").click()
    assert opened.page.evaluate("window.advanced") > 0
    first = opened.page.get_by_label("Video lake-dawn")
    assert first.evaluate("(video) => [video.controls, video.preload]") == [True, "none"]
    opened.page.evaluate(LISTEN)
    opened.page.get_by_role("link", name="Play lake-noon").click()
    assert opened.page.evaluate("window.advanced") > 0
    assert first.evaluate("(video) => video.paused")
    wanted = {url for url in opened.requests if url.endswith(".mp4")}
    assert {url.rpartition("/")[2] for url in wanted} == {"dawn%20%231.mp4", "noon%20%231.mp4"}


def test_outcomes_filter(opened):
    """Each button filters by its outcome and shows a count, and All shows every item again."""
    total = len(NAMES) + len(Outcome) - 1
    for outcome in Outcome:
        count = len(NAMES) if outcome is Outcome.STORED else 1
        button = opened.page.get_by_role("button", name=f"{outcome} {count}", exact=True)
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(opened.page.get_by_text(f"{count} of {total} shown")).to_be_visible()
        shown = opened.cards.evaluate_all("(cards) => cards.map((card) => card.dataset.outcome)")
        assert shown == [outcome] * count
    opened.page.get_by_role("button", name="All").click()
    expect(opened.cards).to_have_count(total)


def test_a_search_finds_ids_and_prompts(opened):
    """A search finds items with every word in the id or prompt in any case, and counts them."""
    search = opened.page.get_by_role("searchbox", name="Search ids and prompts")
    search.fill("LAKE dusk")
    expect(opened.cards).to_have_count(1)
    assert opened.ids() == ["lake-dusk"]
    search.fill("a lake,")
    expect(opened.cards).to_have_count(len(NAMES))
    opened.page.get_by_role("button", name="failed").click()
    expect(opened.page.get_by_text("No items match.")).to_be_visible()
    assert opened.ids() == []
    search.fill("")
    expect(opened.cards).to_have_count(1)


def test_the_keyboard_is_enough(opened):
    """Tab, Space and Enter filter, play and stop, and the focus returns to its element."""
    page = opened.page
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(opened.cards).to_have_count(len(NAMES))
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Play lake-dawn")
    expect(link).to_be_focused()
    page.evaluate(LISTEN)
    page.keyboard.press("Enter")
    assert page.evaluate("window.advanced") > 0
    expect(page.get_by_label("Video lake-dawn")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("video")).to_have_count(0)
    expect(link).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("lakes/dawn")).to_be_visible()


def test_what_one_looks_up_is_copied(opened):
    """A button beside key, id and hash copies the value to the clipboard, and confirms it."""
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.get_by_label("Details of lake-snow").click()
    button = opened.page.get_by_role("button", name="Copy idempotency key of lake-snow")
    button.click()
    expect(button).to_have_text("Copied")
    assert opened.page.evaluate("navigator.clipboard.readText()") == "lakes/snow"
    expect(opened.page.get_by_text("Copied: lakes/snow")).to_be_attached()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_by_day_and_by_night(browser, written, scheme):
    """Light and dark follow the system, and every text has enough contrast in both."""
    opened = Opened(browser, written, color_scheme=scheme)
    opened.page.locator("summary").first.click()
    found = opened.page.evaluate(
        CONTRASTS,
        "h1, .totals span, .tools button, .id, .outcome, .prompt, .facts, .problem p,"
        " .problem strong, summary, dt, dd, .copy, .stage > span",
    )
    assert len(found) > 60
    assert [text for text, contrast in found if contrast < 4.5] == []
    (red, *_) = opened.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert red > 200 if scheme == "light" else red < 40
    opened.context.close()


def test_without_scripts_all_cards_are_shown(browser, written):
    """Without scripts, the counts are shown, posters link to videos, and no button is offered."""
    opened = Opened(browser, written, java_script_enabled=False)
    expect(opened.cards).to_have_count(len(NAMES) + len(Outcome) - 1)
    expect(opened.page.get_by_role("searchbox")).to_have_count(0)
    expect(opened.page.locator("button:enabled:visible")).to_have_count(0)
    expect(opened.page.get_by_text(f"stored {len(NAMES)}")).to_be_visible()
    opened.page.get_by_role("link", name="Play lake-dawn").click(no_wait_after=True)
    opened.page.wait_for_url("**/dawn%20%231.mp4")
    opened.context.close()


def test_hostile_texts_stay_texts(browser, clips, tmp_path):
    """Scripts in prompts, ids, errors and addresses are shown as they are and never run."""
    items = [
        clips[at % len(clips)].model_copy(
            update={
                "id": text,
                "prompt": text,
                "idempotency_key": text,
                "message": text,
                "error": text,
            }
        )
        for at, text in enumerate(ATTACKS)
    ]
    items += [
        clips[0].model_copy(update={"uri": uri, "poster": uri})
        for text in ATTACKS
        for uri in (text, f"s3://{text}")
    ]
    opened = Opened(browser, write(tmp_path, items, title=ATTACKS[3]))
    assert opened.ids()[: len(ATTACKS)] == list(ATTACKS)
    assert opened.page.title() == ATTACKS[3]
    for details in opened.page.locator("summary").all():
        details.click()
    opened.page.get_by_role("searchbox").fill("script")
    expect(opened.page.locator(".shown")).not_to_be_empty()
    opened.page.evaluate(LISTEN)
    opened.page.locator("a.play").first.click()
    assert opened.page.evaluate("window.advanced") > 0
    assert opened.page.evaluate("window.hit") is None
    assert opened.page.evaluate("window.violations") == []
    assert opened.complaints == []
    opened.context.close()


def test_the_policy_holds_where_the_escaping_would_not(browser, written, tmp_path):
    """Markup that got into the page despite the escaping runs nothing and loads nothing."""
    broken = shutil.copytree(written.parent, tmp_path / "batch") / NAME
    html = broken.read_text(encoding="utf-8")
    attacks = "".join(ATTACKS) + "<img src=https://elsewhere.example/x.png>"
    broken.write_text(html.replace("<main>", f"<main>{attacks}"), encoding="utf-8")
    opened = Opened(browser, broken)
    until(lambda: opened.page.evaluate("window.violations.length >= 3"), "three violations")
    assert opened.page.evaluate("window.hit") is None
    assert "img-src https://elsewhere.example/x.png" in opened.page.evaluate("window.violations")
    opened.context.close()


def test_a_folder_that_was_moved_still_plays(browser, written, tmp_path):
    """A page that was moved with its folder still plays its videos."""
    moved = shutil.copytree(written.parent, tmp_path / "moved to") / NAME
    opened = Opened(browser, moved)
    opened.page.evaluate(LISTEN)
    opened.page.get_by_role("link", name="Play lake-dawn").click()
    assert opened.page.evaluate("window.advanced") > 0
    assert any(url.startswith(moved.parent.as_uri() + "/videos/") for url in opened.requests)
    opened.context.close()


def test_a_video_that_is_gone_says_so(browser, clips, tmp_path):
    """A missing video leaves its poster, a note and a link to the file."""
    gone = clips[0].model_copy(update={"uri": str(tmp_path / "gone.mp4")})
    opened = Opened(browser, write(tmp_path, [gone]))
    opened.page.get_by_role("link", name="Play lake-dawn").click()
    expect(opened.page.get_by_role("alert")).to_contain_text("This video cannot be played here.")
    link = opened.page.get_by_role("link", name="Open the file")
    assert link.evaluate("(link) => link.href").endswith("/gone.mp4")
    expect(opened.page.get_by_role("link", name="Play lake-dawn")).to_be_visible()
    opened.context.close()


def test_two_thousand_items_load_only_what_is_near(browser, clips, tmp_path):
    """Far posters are not loaded, far cards are not laid out, and a search still finds each."""
    many = []
    for at in range(2000):
        poster = tmp_path / f"{at}.jpg"
        poster.hardlink_to(clips[0].poster or "")
        many.append(clips[0].model_copy(update={"id": f"sku-{at:04}", "poster": str(poster)}))
    opened = Opened(browser, write(tmp_path, many))
    assert len([url for url in opened.requests if url.endswith(".jpg")]) < 60
    drawn = "(cards) => cards.filter((card) => card.checkVisibility({contentVisibilityAuto: true}))"
    assert opened.page.locator(".card").evaluate_all(f"(cards) => ({drawn})(cards).length") < 300
    opened.page.get_by_role("searchbox").fill("1234")
    expect(opened.page.get_by_text("1 of 2,000 shown")).to_be_visible()
    assert opened.ids() == ["sku-1234"]
    opened.page.evaluate(LISTEN)
    opened.page.get_by_role("link", name="Play sku-1234").click()
    assert opened.page.evaluate("window.advanced") > 0
    opened.context.close()


def test_a_printed_page_holds_all_cards_in_black_on_white(browser, written):
    """A printed page has no controls, and is black on white even in dark mode."""
    opened = Opened(browser, written, color_scheme="dark")
    opened.page.emulate_media(media="print")
    expect(opened.page.get_by_role("searchbox")).to_be_hidden()
    expect(opened.cards).to_have_count(len(NAMES) + len(Outcome) - 1)
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    opened.context.close()
