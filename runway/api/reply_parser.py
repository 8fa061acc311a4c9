# SPDX-License-Identifier: Apache-2.0
"""Parser for every shape of CometAPI's replies.

CometAPI's docs of different dates show different replies for the same route: a bare Runway object,
the gateway's envelope around it (with the inner object null, behind or ahead), a flat feed entry,
and older ones with the result's URL in `fail_reason`. Any of them may occur, so the parser goes by
structure and never by a version:

- the layers of a reply are the object itself and the objects under `data`, from the outside in;
- a failure or cancellation in any layer is final; a success needs a success word, and its URL may
  come later; a vague word such as `timeout` is final unless another layer reports success; anything
  unknown means "keep waiting";
- a result is any http(s) URL in a field where some version of the API puts results.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

from ..models.generation import AssetURL, Generation, Status
from ..redact import scrub

MAX_DEPTH = 4
MAX_OUTPUTS, MAX_URL_LENGTH = 16, 16_000
"""Maximum number of outputs of one generation (the documented models make one), and maximum length
of a URL in characters."""

MAX_FIELDS, MAX_FIELD_DEPTH = 500, 8
"""Maximum number and depth of the fields that the description of a reply considers."""

NOT_FOUND_CODE = "task_not_exist"
_WEB = re.compile("https?://", re.IGNORECASE)
_RUNWAYS_CODE = re.compile(r"\b[A-Z][A-Z_]{3,}(?:\.[A-Z0-9_]+)+\b")

_WORDS = {
    Status.PENDING: "not_start submitted queued unknown pending throttled 0 1",
    Status.RUNNING: "in_progress running processing",
    Status.SUCCEEDED: "success succeed succeeded completed finished ready done 3",
    Status.FAILED: "failure failed fail",
    Status.CANCELLED: "cancelled canceled",
    Status.NOT_FOUND: f"{NOT_FOUND_CODE} task_origin_not_exist",
}
_VAGUE_WORDS = {
    Status.FAILED: "error errored exception rejected timeout timed_out timedout expired",
    Status.CANCELLED: "aborted terminated revoked",
}
"""Words of related gateways for an end that may not be Runway's: the gateway gave up, for example.
They end a wait, but a success in another layer of the reply counts more."""

_STATUS_OF_WORD = {
    word: status
    for meanings in (_WORDS, _VAGUE_WORDS)
    for status, words in meanings.items()
    for word in words.split()
}
_VAGUE = {word for words in _VAGUE_WORDS.values() for word in words.split()}
_UNSUCCESSFUL = {Status.FAILED, Status.CANCELLED}
_IDS = ("task_id", "id")
_STATUS_FIELDS = ("status", "state")
_SUCCESS_CODES = {"", "success", "200", "0", "ok"}


def read_generation(body: Any, task_id: str) -> Generation | None:
    """Return the state in a reply to a poll, or None if it says nothing about this generation."""
    if why_unread(body, task_id):
        return None
    layers = list(_layers(body))
    words = _words(layers)
    outputs = tuple(AssetURL(url) for url in _outputs(layers))
    status, is_vague = _combined(words, bool(outputs))
    unknown = [word for word in words if not _is_known(word)]
    is_unread = bool(unknown) or (status is Status.SUCCEEDED and not outputs)
    return Generation(
        task_id=task_id,
        status=status,
        progress=_progress(layers),
        outputs=outputs if status is Status.SUCCEEDED else (),
        failure=_failure(layers) if status in _UNSUCCESSFUL else "",
        failure_code=_failure_code(layers) if status in _UNSUCCESSFUL else "",
        raw_status=words[-1] if _is_known(words[-1]) else scrub(words[-1], limit=40),
        unknown_status=scrub(unknown[-1], limit=40) if unknown else "",
        unread="; ".join(filter(None, (_reason(layers), _unread(body)))) if is_unread else "",
        is_vague=is_vague,
        credits=_credits(layers),
    )


def why_unread(body: Any, task_id: str) -> str:
    """Return the reason why a reply says nothing about a generation, or an empty text; pure."""
    layers = list(_layers(body))
    words = _words(layers)
    if error_of(body):
        return "the reply is an error"
    if not words:
        return _without_word(body, layers)
    named = _named(layers)
    if named and task_id.lower() not in named:
        # A server on the way may answer a poll with the reply to a different one, which names the
        # video of another generation.
        others = ", ".join(scrub(id_, limit=80) for id_ in sorted(named))
        return f"the reply is about the generation {others}"
    outputs = _outputs(layers)
    status, _is_vague = _combined(words, bool(outputs))
    is_end = status in _UNSUCCESSFUL or (status is Status.SUCCEEDED and not outputs)
    if not named and (is_end or not any(map(_is_known, words))):
        # A server on the way may have answered instead: a health page has a status, too. A wrong
        # end would lose a paid video.
        return f"the reply has the status {scrub(words[-1], limit=40)!r} and names no generation"
    return ""


def _reason(layers: list[dict[str, Any]]) -> str:
    """Quote the reason of a failure in a reply whose status is not known."""
    reason = _text(layers, "failure", "fail_reason", "failureCode", "failure_code")
    return f"the reply has the reason {scrub(reason)!r}" if reason else ""


def _without_word(body: Any, layers: list[dict[str, Any]]) -> str:
    """Describe a reply in which no status was found."""
    values = [layer.get(name) for layer in layers for name in _STATUS_FIELDS]
    if value := next((value for value in values if value not in (None, "")), None):
        return f"the reply has the status {scrub(str(value), limit=40)!r}, which is not known here"
    return f"the reply has no status; {_unread(body)}"


def _unread(body: Any) -> str:
    """Describe a reply by its fields with a web address, or else by all of its fields.

    The addresses themselves may be signed, so they are not named.
    """
    found = list(islice(_fields(body), MAX_FIELDS))
    urls = [path for path, value in found if isinstance(value, str) and _WEB.match(value)]
    shown = ", ".join(scrub(path, limit=80) for path in (urls or [path for path, _ in found])[:8])
    if urls:
        return f"the reply has a web address in {shown}"
    return f"the reply has the fields {shown}" if shown else "the reply is empty"


def _fields(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each field, such as ``data.videos.0.link``."""
    if depth > MAX_FIELD_DEPTH or not isinstance(value, dict | list):
        yield path, value
        return
    items = enumerate(value) if isinstance(value, list) else value.items()
    for name, inner in cast("Iterable[tuple[Any, Any]]", items):
        yield from _fields(inner, f"{path}.{name}" if path else str(name), depth + 1)


def _words(layers: list[dict[str, Any]]) -> list[str]:
    return [word for layer in layers if (word := _word(layer))]


def _is_known(word: str) -> bool:
    return word == "2" or word.lower() in _STATUS_OF_WORD


def _named(layers: list[dict[str, Any]]) -> set[str]:
    """Return the ids that the reply names, in lower case."""
    ids = (_as_id(layer.get(name)) for layer in layers for name in _IDS)
    return {id_.lower() for id_ in ids if id_}


def read_task_id(body: Any) -> str | None:
    """Return the id in a reply to a create call, or None if it holds none."""
    for layer in _layers(body):
        for name in _IDS:
            if id_ := _as_id(layer.get(name)):
                return id_
        data = layer.get("data")
        if isinstance(data, str) and data.strip():
            return data.strip()
    return None


def _as_id(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return str(value) if is_number else ""


def error_of(body: Any) -> tuple[str, str] | None:
    """Return the (code, message) of an error reply, or None if the reply is not an error."""
    if not isinstance(body, dict) or _word(body):
        return None
    error = body.get("error")
    if isinstance(error, dict):
        return _slug(error.get("code")), _first_text(error, "message", "msg", "type")
    if isinstance(error, str) and error.strip():
        return _slug(body.get("code")), error.strip()
    code = _slug(body.get("code"))
    if code.lower() not in _SUCCESS_CODES and not isinstance(body.get("data"), dict):
        return code, _first_text(body, "message", "msg")
    return None


def says_not_found(body: Any) -> bool:
    """Return True if the reply says that the service does not know the generation (yet)."""
    error = error_of(body)
    if error:
        code, message = error
        return code == NOT_FOUND_CODE or ("not_exist" in message and "task" in message)
    words = [_word(layer) for layer in _layers(body)]
    return any(_STATUS_OF_WORD.get(word.lower()) is Status.NOT_FOUND for word in words)


def _layers(body: Any) -> Iterator[dict[str, Any]]:
    for _ in range(MAX_DEPTH):
        if not isinstance(body, dict):
            return
        yield body
        body = body.get("data")


def _word(layer: dict[str, Any]) -> str:
    for name in _STATUS_FIELDS:
        value = layer.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool) and value in range(4):
            return str(value)
    return ""


def _status(word: str, has_output: bool) -> Status | None:
    if word == "2":  # failed in one API version, succeeded in another: the URL decides
        return Status.SUCCEEDED if has_output else Status.FAILED
    return _STATUS_OF_WORD.get(word.lower())


def _combined(words: list[str], has_output: bool) -> tuple[Status, bool]:
    """Return the status that the words of all layers result in, and whether its word is vague."""
    clear = {_status(word, has_output) for word in words if word.lower() not in _VAGUE}
    vague = {_status(word, has_output) for word in words if word.lower() in _VAGUE}
    by_weight = (
        (Status.CANCELLED, clear),  # first, since the gateway has no word for it but FAILURE
        (Status.FAILED, clear),
        (Status.SUCCEEDED, clear),
        (Status.CANCELLED, vague),
        (Status.FAILED, vague),
        (Status.RUNNING, clear),
        (Status.NOT_FOUND, clear),
    )
    for status, statuses in by_weight:
        if status in statuses:
            return status, statuses is vague
    return Status.PENDING, False


def _outputs(layers: list[dict[str, Any]]) -> list[str]:
    urls: list[str] = []
    for layer in reversed(layers):
        for name in ("output", "outputs", "result_url", "video_url"):
            urls.extend(_urls(layer.get(name)))
    if not urls:
        for layer in layers:
            if _STATUS_OF_WORD.get(_word(layer).lower()) is Status.SUCCEEDED:
                urls.extend(_urls(layer.get("fail_reason")))
    return list(dict.fromkeys(urls))[: MAX_OUTPUTS + 1]  # one extra shows that there are too many


def _urls(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        is_object = isinstance(item, dict)
        for text in map(item.get, ("url", "uri", "video_url")) if is_object else [item]:
            if isinstance(text, str) and len(text) <= MAX_URL_LENGTH and _WEB.match(text):
                yield text


def _progress(layers: list[dict[str, Any]]) -> float | None:
    for layer in reversed(layers):
        fraction = _fraction(layer.get("progress"))
        if fraction is not None:
            return fraction
    return None


def _fraction(value: Any) -> float | None:
    percent = isinstance(value, str) and value.strip().endswith("%")
    if isinstance(value, str):
        value = value.strip().rstrip("%")
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return min(1.0, max(0.0, number / 100 if percent or number > 1 else number))


def _credits(layers: list[dict[str, Any]]) -> float | None:
    """Return Runway's credits for the task, which its SDK reads as ``cost`` of a finished one."""
    for layer in reversed(layers):
        for name in ("cost", "estimatedCost"):
            cost = layer.get(name)
            value = cast("dict[str, Any]", cost).get("credits") if isinstance(cost, dict) else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value) if math.isfinite(value) and value >= 0 else None
    return None


def _failure(layers: list[dict[str, Any]]) -> str:
    for layer in reversed(layers):
        reason = _first_text(layer, "failure", "fail_reason", "error", "msg", "message")
        if reason:
            return scrub(reason)
    return ""


def _failure_code(layers: list[dict[str, Any]]) -> str:
    """Return the code of a failure: a field of its own, part of an error, or part of the reason."""
    if code := _text(layers, "failureCode", "failure_code"):
        return scrub(code, limit=80)
    for layer in reversed(layers):
        error = layer.get("error")
        if isinstance(error, dict) and (code := _slug(cast("dict[str, Any]", error).get("code"))):
            return code
    found = _RUNWAYS_CODE.search(_failure(layers))
    return scrub(found[0], limit=80) if found else ""


def _text(layers: list[dict[str, Any]], *names: str) -> str:
    return next((text for layer in reversed(layers) if (text := _first_text(layer, *names))), "")


def _first_text(layer: dict[str, Any], *names: str) -> str:
    for name in names:
        value = layer.get(name)
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def _slug(code: Any) -> str:
    return (
        "" if code is None or isinstance(code, (bool, dict, list)) else scrub(str(code), limit=80)
    )
