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
from collections.abc import Iterator
from typing import Any, cast

from ..models.generation import AssetURL, Generation, Status
from ..redact import scrub

MAX_DEPTH = 4
MAX_OUTPUTS, MAX_URL_LENGTH = 16, 16_000
"""Maximum number of outputs of one generation (the documented models make one), and maximum length
of a URL in characters."""

NOT_FOUND_CODE = "task_not_exist"
_WEB = re.compile("https?://", re.IGNORECASE)

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
_SUCCESS_CODES = {"", "success", "200", "0", "ok"}


def read_generation(body: Any, task_id: str) -> Generation | None:
    """Return the state in a reply to a poll, or None if it says nothing about this generation."""
    layers = list(_layers(body))
    words = [word for layer in layers if (word := _word(layer))]
    if not words or error_of(body) or not _is_about(layers, task_id):
        return None
    outputs = tuple(AssetURL(url) for url in _outputs(layers))
    status, is_vague = _combined(words, bool(outputs))
    unknown = [word for word in words if not _is_known(word)]
    if status in _UNSUCCESSFUL and not _named(layers):
        # A server on the way may have failed instead. A wrong failure would lose a paid video.
        return None
    return Generation(
        task_id=task_id,
        status=status,
        progress=_progress(layers),
        outputs=outputs if status is Status.SUCCEEDED else (),
        failure=_failure(layers) if status in _UNSUCCESSFUL else "",
        failure_code=scrub(_text(layers, "failureCode", "failure_code"), limit=80),
        raw_status=scrub(words[-1], limit=40),
        unknown_status=scrub(unknown[-1], limit=40) if unknown else "",
        is_vague=is_vague,
        credits=_credits(layers),
    )


def _is_known(word: str) -> bool:
    return word == "2" or word.lower() in _STATUS_OF_WORD


def _is_about(layers: list[dict[str, Any]], task_id: str) -> bool:
    """Return True if the reply names the requested id, or no id at all.

    A server on the way may answer a poll with the reply to a different one, which names the video
    of another generation.
    """
    named = _named(layers)
    return not named or task_id.lower() in named


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
    for name in ("status", "state"):
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
