# SPDX-License-Identifier: Apache-2.0
"""Gallery of a batch: one HTML page with its script and style included.

The page contains untrusted text: prompts, ids and error messages. Jinja escapes all of it. A
Content-Security-Policy allows only the one script and the one style of the page, by their hashes.
"""

import base64
import hashlib
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ... import runway
from ...runway.batch.models import ItemResult, Outcome
from ...runway.ledger.figures import Spending, figures
from ...runway.models.requests import ROUTES
from ...runway.redact import hide_secrets
from ..ui.formatting import shown_size
from .urls import address, origins, without_login

if TYPE_CHECKING:
    from jinja2 import Template

NAME, CARD_NAME = "gallery.html", "gallery.card.html"
"""Names of the templates of the page, and of the card of one item."""

_HERE = Path(__file__).parent
_OUTCOME_ORDER = (
    Outcome.STORED,
    Outcome.FAILED,
    Outcome.UNCERTAIN,
    Outcome.NOT_BOUGHT,
    Outcome.INVALID,
    Outcome.RUNNING,
    Outcome.WAITING,
)
_GROUP = 60  # cards; fills complete rows of 1 to 6
_MAX_SECONDS = 1e12  # longer durations are not shown
_WIDEST, _TALLEST, _DEFAULT_RATIO = Fraction(21, 9), Fraction(9, 16), Fraction(16, 9)
_PICTURE = re.compile(r"data:image/(?:jpeg|png|webp|gif|avif);base64,[A-Za-z0-9+/]+={0,2}")
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_ADVICE_WITHOUT_ERROR: dict[Outcome, type[runway.CometAPIError]] = {
    Outcome.UNCERTAIN: runway.SubmissionUncertain,
    Outcome.INVALID: runway.InvalidRequest,
}


def gallery(
    results: Sequence[ItemResult],
    *,
    title: str,
    base: str,
    posters: Mapping[str, str] | None = None,
    spending: Spending | None = None,
    written_at: datetime | None = None,
) -> str:
    """Return the HTML page, which must be written as UTF-8.

    Args:
        results: Results of the items, in the order to show.
        title: Title of the page.
        base: Folder of the page, as path or URL. Files in it or below it get relative URLs.
        posters: Images as data URIs, by item id. An embedded image is visible wherever the video
            is stored.
        spending: Estimated and spent amounts. Without them, the page shows the sum of the billed
            seconds of the items.
        written_at: Time to show as the time of writing; by default none is shown.
    """
    article = cast("Any", _template(CARD_NAME).module).article
    posters = posters or {}
    pictures: set[str] = set()
    videos: set[str] = set()
    cards: list[str] = []
    for result in results:  # one card at a time, since its text takes less memory than its parts
        card = _card(result, base, posters.get(result.id))
        pictures.update(origins([card.poster] if card.poster else []))
        videos.update(origins([card.video] if card.video else []))
        cards.append(article(card))
    style = f"{_source('gallery.css')}{_frame(results)}"
    script = _source("gallery.js")
    return _template(NAME).render(
        title=_clean(title),
        policy=_policy(style, script, pictures, videos),
        style=style,
        script=script,
        cards=cards,
        group_size=_GROUP,
        shares=_shares(results),
        totals=_totals(results, spending),
        written_at=written_at.astimezone(UTC) if written_at else None,
    )


@dataclass(frozen=True, slots=True)
class _Card:
    """Content of the page for one item.

    Attributes:
        video: URL of the video, if a browser can open it.
        picture: URL of the picture, if the item is one and a browser can open it.
        poster: URL of an image.
        location: Location of the file, if a browser cannot open it.
        facts: Lines of short facts.
        error: Type of the error.
        message: Error message.
        advice: Texts about the money and the next step, by label.
        ids: Values to copy, such as the idempotency key and the task id, by label.
        details: Lines with further details.
    """

    id: str
    outcome: Outcome
    prompt: str
    length: str
    video: str | None
    picture: str | None
    poster: str | None
    location: str
    facts: list[str]
    error: str
    message: str
    advice: dict[str, str]
    ids: dict[str, str]
    details: list[str]

    @property
    def has_problem(self) -> bool:
        """True if the card shows an error or advice."""
        return bool(self.error or self.message or self.advice)


def _card(result: ItemResult, base: str, embedded: str | None) -> _Card:
    file = address(result.uri, base) if result.uri else None
    request = ROUTES.get(result.route or "")
    is_picture = request is not None and request.makes() == "picture"
    poster = address(result.poster, base) if result.poster else None
    if embedded and _PICTURE.fullmatch(embedded):
        poster = embedded
    location = _clean(without_login(result.uri or ""))
    message, advice = _message_and_advice(result)
    ids = {
        "file": location if file else None,
        "failure code": result.failure_code,
        "idempotency key": result.idempotency_key,
        "task id": result.task_id,
        "sha256": result.sha256,
    }
    details = [
        (result.route or "").replace("_", " "),
        f"submitted {_time(result.submitted_at)}" if result.submitted_at else "",
        "".join(f"billed for {_number(seconds)} s" for seconds in _known(result.billed_seconds)),
    ]
    return _Card(
        id=_clean(result.id),
        outcome=result.outcome,
        prompt=_clean(result.prompt or ""),
        length=_seconds(result.duration),
        video=None if is_picture else file,
        picture=file if is_picture else None,
        poster=poster,
        location="" if file else location,
        facts=_facts(result),
        error=_clean(result.error or ""),
        message=message,
        advice=advice,
        ids={label: _clean(value) for label, value in ids.items() if value},
        details=[_clean(line) for line in details if line],
    )


def _facts(result: ItemResult) -> list[str]:
    frame = f"{result.width} × {result.height}" if result.width and result.height else ""  # noqa: RUF001 -- the multiplication sign is intended
    size = shown_size(result.size) if result.size else ""
    took = "".join(f"took {_span(seconds)}" for seconds in _known(result.waited))
    polls = _count(result.polls, "poll") if result.polls is not None else ""
    lines = [(_clean(result.model or ""), frame, size), (took, polls), (_provenance(result),)]
    return [" · ".join(filter(None, line)) for line in lines if any(line)]


def _provenance(result: ItemResult) -> str:
    """Return the line about the C2PA manifest of a file, or an empty text if it is not known."""
    if not result.c2pa:
        return "" if result.c2pa is None else "no C2PA manifest"
    return f"C2PA, signed by {_clean(result.c2pa_signer or 'an unnamed signer')} (not verified)"


def _message_and_advice(result: ItemResult) -> tuple[str, dict[str, str]]:
    """Return the error message of an item, and its advice by label.

    The advice comes from the text of the error, or else from the type of the error.
    """
    if not result.message:
        return "", _default_advice(result)
    text = _clean(hide_secrets(result.message))
    parts = re.split(r"^(Generation|Money|Next): ", text, flags=re.MULTILINE)
    own = {label: part.strip() for label, part in zip(parts[1::2], parts[2::2], strict=True)}
    advice = _default_advice(result) | own
    return parts[0].strip(), {name: advice[name] for name in ("Money", "Next") if advice.get(name)}


def _default_advice(result: ItemResult) -> dict[str, str]:
    if result.outcome in {Outcome.STORED, Outcome.WAITING, Outcome.RUNNING}:
        return {}
    kind = getattr(runway, result.error or "", None)
    if not (isinstance(kind, type) and issubclass(kind, runway.CometAPIError)):
        kind = _ADVICE_WITHOUT_ERROR.get(result.outcome)
    if kind:
        error = kind("", code=result.failure_code or "").with_context(
            idempotency_key=result.idempotency_key, task_id=result.task_id
        )
        return {"Money": error.money, "Next": _clean(error.hint())}
    if result.outcome is Outcome.NOT_BOUGHT:
        return {
            "Money": "nothing was charged.",
            "Next": "raise the limit that was reached, then run the batch again; "
            "nothing is bought twice.",
        }
    return {
        "Next": _clean(
            f"prefect-cometapi ledger show {shlex.quote(result.idempotency_key or 'KEY')}"
        )
    }


def _totals(results: Sequence[ItemResult], spending: Spending | None) -> list[str]:
    """Return the parts of the line under the title."""
    stored = [result for result in results if result.outcome is Outcome.STORED]
    seconds = math.fsum(_known(*(result.duration for result in stored)))
    billed = _known(*(result.billed_seconds for result in results))
    size = sum(result.size or 0 for result in stored)
    totals = [
        f"{len(stored):,} of {_count(len(results), 'video')} stored",
        f"{_number(seconds)} s of video" + (f" ({_span(seconds)})" if seconds >= 60 else ""),
        f"billed for {_number(math.fsum(billed))} s" if billed and not spending else "",
        shown_size(size) if size else "",
    ]
    totals += (
        [f"{name}: {amount}" for name, amount in figures(spending).items()] if spending else []
    )
    return [part for part in totals if part]


def _shares(results: Sequence[ItemResult]) -> list[tuple[Outcome, int, int]]:
    """Return each outcome with its count and the total count of the outcomes before it."""
    counted = Counter(result.outcome for result in results)
    shares: list[tuple[Outcome, int, int]] = []
    before = 0
    for outcome in _OUTCOME_ORDER:
        if counted[outcome]:
            shares.append((outcome, counted[outcome], before))
            before += counted[outcome]
    return shares


def _frame(results: Sequence[ItemResult]) -> str:
    """Return CSS that gives all posters the aspect ratio of most videos.

    Posters of one shape keep the rows of the page even.
    """
    sizes = [(result.width or 0, result.height or 0) for result in results]
    ratios = Counter(Fraction(width, height) for width, height in sizes if width * height > 0)
    usual = ratios.most_common(1)[0][0] if ratios else _DEFAULT_RATIO
    ratio = min(max(usual, _TALLEST), _WIDEST)
    narrow = "--card:14rem;" if ratio < 1 else ""
    return f":root{{{narrow}--frame:{ratio.numerator}/{ratio.denominator}}}\n"


def _policy(style: str, script: str, pictures: set[str], videos: set[str]) -> str:
    """Return the policy of a page that loads only from these sources, beside what is in it."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            # The icon of the page is a data: URI.
            " ".join(["img-src", *sorted({"data:", *pictures})]),
            " ".join(["media-src", *(sorted(videos) or ["'none'"])]),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _source(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _clean(text: str) -> str:
    """Return the text with the characters replaced that are not allowed in HTML."""
    if text.isprintable() and text.isascii():  # the usual case, without two searches
        return text
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"\r\n?", "\n", text))


def _known(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and 0 <= value < _MAX_SECONDS]


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _seconds(value: float | None) -> str:
    return "".join(f"{seconds:.1f} s" for seconds in _known(value))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _span(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
