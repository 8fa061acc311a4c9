# SPDX-License-Identifier: Apache-2.0
"""Exceptions of this package, as one tree.

::

    CometAPIError
    ├── NotSubmitted                  nothing was bought
    │   ├── InvalidRequest            the service does not accept this request
    │   │   └── InvalidSource         it does not accept an image or a video of the request
    │   ├── SourceUnavailable         an image or a video of the request cannot be read
    │   │   └── SourceUnreachable     its storage does not answer for now; can be retried
    │   ├── InvalidManifest           a manifest, or some of its rows, cannot be used
    │   ├── QuotaExceeded             the account has no balance
    │   ├── BudgetExceeded            one more submission would exceed the spending limit of a batch
    │   ├── IdempotencyKeyConflict    the idempotency key belongs to another request
    │   ├── LedgerUnavailable         the ledger cannot be read or written
    │   │   └── LedgerCorrupted       a row of the ledger is corrupted
    │   ├── LedgerOutdated            the ledger is an older copy and lacks purchases
    │   └── StorageUnavailable        the requested storage cannot take a video
    ├── InvalidEnvironment            a variable of the environment, or .env, cannot be used
    ├── AuthenticationError           no API key, a wrong one, or one without permission
    ├── UnexpectedResponse            the server at the base URL is not CometAPI
    ├── ServiceUnavailable            busy or unreachable for now; can be retried
    ├── SubmissionUncertain           sent, but without an answer: possibly charged
    ├── GenerationError               bought, but without success
    │   ├── GenerationNotFound        the service does not know the generation
    │   │   └── UnknownTaskId         a task id entered by hand, which is not recorded
    │   ├── GenerationFailed          the service reports a failure and its reason
    │   ├── GenerationCancelled       it was cancelled upstream
    │   └── GenerationTimeout         it did not finish within the timeout
    ├── DeliveryError                 finished, but not stored yet
    │   ├── DownloadInterrupted       the download broke off; can be retried
    │   ├── OutputExpired             the output URL is no longer valid; can be retried
    │   ├── InvalidOutput             the downloaded file is not a complete video
    │   ├── ProvenanceMissing         it has no C2PA manifest, and the settings require one
    │   └── StorageError              the storage rejected the video
    │       └── StagedFileMissing     the downloaded file is gone from this machine
    ├── SigningError                  a copy cannot be signed, or a manifest not verified
    ├── BatchFailed                   no item of a batch succeeded, or too many failed
    └── TooManyRunAttempts            a flow run was started too often

Every message names the problem, the generation, what is known about the money, and the next step.
"""

import shlex
from typing import Any, ClassVar


class CometAPIError(Exception):
    """Base class of all errors that this package raises on purpose.

    Attributes:
        message: The problem in one sentence.
        idempotency_key: Idempotency key of the generation, or None if it is not known.
        task_id: Task id from CometAPI, or None if it is not known.
        request_id: CometAPI's id of the failed call, or of the submission, or None if it is not
            known. CometAPI's support finds the call by it.
        code: The service's own error code, or an empty string.
        http_status: HTTP status of the reply, or None if there was no reply.
        retry_after: Seconds to wait before the next attempt, or None if the service named none.
        money: Effect on the money, as the message states it.
        advice: Template of the next step; ``idempotency_key`` and ``task_id`` are filled in.
        then_finish: True if a bought generation can be finished once the advice is followed.
    """

    money: str = ""
    advice: str = ""
    then_finish: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.retry_after = retry_after
        self.idempotency_key: str | None = None
        self.task_id: str | None = None
        self.request_id: str | None = None

    def with_context(
        self,
        *,
        idempotency_key: str | None = None,
        task_id: str | None = None,
        request_id: str | None = None,
    ) -> "CometAPIError":
        """Add the ids of the generation and of the request, and return the error itself.

        Values that are known already stay as they are.
        """
        self.idempotency_key = self.idempotency_key or idempotency_key
        self.task_id = self.task_id or task_id
        self.request_id = self.request_id or request_id
        return self

    def __str__(self) -> str:
        return "\n".join(line for line in self._lines() if line)

    def hint(self) -> str:
        """Return the next step for the user, or an empty string."""
        key = shlex.quote(self.idempotency_key) if self.idempotency_key else "KEY"
        task_id = shlex.quote(self.task_id) if self.task_id else "TASK_ID"
        advice = self.advice.format(task_id=task_id, idempotency_key=key)
        if self.then_finish and self.task_id:
            advice += f" (then: prefect-cometapi finish {task_id})"
        return advice

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()!r})"

    def generation(self) -> str:
        """Return the known ids of the generation, or an empty string."""
        known = [("idempotency key", self.idempotency_key), ("task id", self.task_id)]
        return ", ".join(f"{name} {value}" for name, value in known if value)

    def _lines(self) -> list[str]:
        which, advice = self.generation(), self.hint()
        return [
            self.summary(),
            f"Generation: {which}." if which else "",
            f"Money: {self.money}" if self.money else "",
            f"Next: {advice}" if advice else "",
            f"Support: CometAPI's request id is {self.request_id}." if self.request_id else "",
        ]

    def summary(self) -> str:
        """Return the problem in one line, with the service's code and the HTTP status."""
        status = f"HTTP {self.http_status}" if self.http_status else ""
        details = ", ".join(part for part in (self.code, status) if part)
        return f"{self.message} ({details})" if details else self.message


class NotSubmitted(CometAPIError):
    """Base class of errors raised before anything was bought."""

    money = "nothing was charged."


class InvalidRequest(NotSubmitted):
    """Error for a request that the service does not accept."""

    advice = "correct the request and run it again."


class InvalidSource(InvalidRequest):
    """Error for an image or a video that the service does not accept."""

    advice = (
        "use a JPEG, PNG or WebP, or a video, within the size that the message names, and run it "
        "again."
    )


class SourceUnavailable(NotSubmitted):
    """Error for an image or a video that cannot be read on the machine that submits it."""

    advice = (
        "correct the address, or let that machine read it (permissions, credentials, the same "
        "path), and run it again."
    )


class SourceUnreachable(SourceUnavailable):
    """Error for the storage of an image or a video that does not answer for now."""

    advice = "wait and run it again; nothing is bought before the source is read."


class QuotaExceeded(NotSubmitted):
    """Error for an account without balance."""

    advice = "top up the account at https://www.cometapi.com/console and run it again."


class BudgetExceeded(NotSubmitted):
    """Error for a submission that would exceed the spending limit of its batch."""

    money = "nothing was charged for it."
    advice = "raise max_spend or max_seconds and run the batch again; it buys what is missing."


class IdempotencyKeyConflict(NotSubmitted):
    """Error for an idempotency key that belongs to another request."""

    advice = "use another idempotency key for another request, or repeat the same request."


class LedgerUnavailable(NotSubmitted):
    """Error for a ledger that cannot be read or written; nothing was sent."""

    advice = "check that the database at COMETAPI_LEDGER_URL is reachable, then run it again."


class LedgerCorrupted(LedgerUnavailable):
    """Error for a corrupted ledger row; its generation cannot continue."""

    money = "nothing was charged for this call; the generation of the row may have been bought."
    advice = (
        "fix the row, or put a backup of the ledger in its place; do not delete it, because it "
        "records what was bought."
    )


class LedgerOutdated(NotSubmitted):
    """Error for a ledger that is an older copy or another ledger, and lacks purchases."""

    money = (
        "nothing was charged for this call; generations that the ledger lacks may have been bought."
    )
    advice = (
        "put the newest copy of the ledger in its place, or rebuild it from the stored videos: "
        "prefect-cometapi ledger rebuild"
    )


class StorageUnavailable(NotSubmitted):
    """Error for a storage that cannot take the video, which is therefore not bought."""

    advice = "choose a writable storage (storage, or COMETAPI_STORAGE) and run it again."


class InvalidEnvironment(CometAPIError):
    """Error for a variable of the environment, or a ``.env`` file, that cannot be used."""

    money = "nothing was charged for this call."
    advice = "correct what the message names, and run it again."
    then_finish = True


class AuthenticationError(CometAPIError):
    """Error for an API key that is missing, wrong or without permission."""

    money = "nothing was charged for this call."
    advice = (
        "set COMETAPI_KEY, or the API key of the credentials block, to one from "
        "https://www.cometapi.com/console/token"
    )
    then_finish = True


class UnexpectedResponse(CometAPIError):
    """Error for a server at the base URL that is not CometAPI."""

    money = "nothing was charged for this call."
    advice = (
        "check COMETAPI_BASE_URL: the root of the service, for example https://api.cometapi.com"
    )
    then_finish = True


class ServiceUnavailable(CometAPIError):
    """Error for a service that is busy or unreachable for now, and did not accept the call."""

    money = "nothing was charged for this call."
    advice = "wait and run it again; nothing is bought twice."
    then_finish = True


class SubmissionUncertain(CometAPIError):
    """Error for a submission that was sent, but has no answer that says if it was accepted.

    Attributes:
        may_resubmit: True if the user allows this run one resubmission, and it has not used it.
        may_reconcile: True if the user allows the account to decide, and it may do so later.
    """

    may_resubmit: bool = False
    may_reconcile: bool = False
    money = "possibly charged, once. The submission is never repeated automatically."
    advice = (
        "prefect-cometapi ledger reconcile {idempotency_key} asks the account, or look in "
        "CometAPI's console. If it is there: "
        "prefect-cometapi ledger adopt {idempotency_key} TASK_ID. "
        "If it is still not there 15 minutes after it was sent: "
        "prefect-cometapi ledger resubmit {idempotency_key}. Then run it again."
    )


class GenerationError(CometAPIError):
    """Base class of errors of a generation that was bought and did not succeed.

    Attributes:
        credits: Runway's credits for the generation, or None if the service did not name them.
    """

    credits: float | None = None
    money = "the generation was accepted, so it may have been charged."


class GenerationNotFound(GenerationError):
    """Error for a generation that the service does not know."""

    advice = (
        "check that the API key belongs to the account that bought it, "
        "then: prefect-cometapi finish {task_id}"
    )


class UnknownTaskId(GenerationNotFound):
    """Error for a task id entered by hand that the service does not know; it is not recorded."""

    money = "nothing was charged for this call, and nothing is recorded as bought."
    advice = (
        "compare the id with CometAPI's console, and check that the API key belongs to the account "
        "that bought it. A new id may take some minutes to become known."
    )


MODERATED = (
    "content moderation refused it, so the same request is refused again: change the prompt or the "
    "image, and use a new idempotency key."
)
"""Next step after a failure by content moderation."""

BAD_ASSET = (
    "Runway cannot use the image or the video of the request: replace it, and use a new "
    "idempotency key."
)
"""Next step after a failure by a source."""


def is_moderation(code: str) -> bool:
    """Return True for the code of a failure by content moderation, such as SAFETY.INPUT.TEXT."""
    return "SAFETY" in code.upper().split(".")


class GenerationFailed(GenerationError):
    """Error for a generation that failed upstream.

    Attributes:
        failure_code: The service's code, such as SAFETY.INPUT.TEXT or
            INTERNAL.BAD_OUTPUT.CODE01. The set of codes is open: match them by prefix.
    """

    money = "accepted, then failed; whether CometAPI refunds it depends on the reason."
    advice = "change the image or the prompt; another attempt needs a new idempotency key."

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        if is_moderation(self.code):
            self.advice = MODERATED
        elif self.code.upper().startswith("ASSET"):
            self.advice = BAD_ASSET

    @property
    def failure_code(self) -> str:
        """The service's code, or an empty string."""
        return self.code


class GenerationCancelled(GenerationError):
    """Error for a generation that was cancelled upstream."""

    advice = "another attempt needs a new idempotency key."


class GenerationTimeout(GenerationError):
    """Error for a generation that did not finish within the timeout; it continues upstream."""

    money = "accepted and still running upstream, so it is charged when it succeeds."
    advice = (
        "prefect-cometapi finish {task_id}   (COMETAPI_GENERATION_TIMEOUT sets how long to wait)"
    )


class DeliveryError(CometAPIError):
    """Base class of errors of a generation that is finished, but not stored yet."""

    money = "the generation is paid for; fetching it again is free."
    advice = "prefect-cometapi finish {task_id}"


class DownloadInterrupted(DeliveryError):
    """Error for a download that broke off."""


class OutputExpired(DeliveryError):
    """Error for an output URL that is no longer valid."""


class InvalidOutput(DeliveryError):
    """Error for a download that is not a complete video; nothing was published in the storage."""


class ProvenanceMissing(DeliveryError):
    """Error for an output without a C2PA manifest, if the settings require one.

    Nothing was published in the storage, and the downloaded file is kept.
    """

    advice = (
        "to publish it as it is: COMETAPI_REQUIRE_PROVENANCE=false prefect-cometapi finish "
        "{task_id}   (to ask the service for the file once more: delete it, then finish)"
    )


class StorageError(DeliveryError):
    """Error for a storage that rejected the video."""


class StagedFileMissing(StorageError):
    """Error for a downloaded file that is gone from this machine and must be fetched again."""


class SigningError(CometAPIError):
    """Error for a copy that cannot be signed, or for a manifest that cannot be verified."""

    money = "nothing was charged for this call, and the original is unchanged."
    advice = "correct what the message names, then run it again."


class TooManyRunAttempts(CometAPIError):
    """Error for a flow run that was started too often, by retries and after crashes."""

    money = "its purchases are in the ledger and are not paid for again."
    advice = (
        "finish its generations with prefect-cometapi collect; the log shows why the run kept "
        "ending."
    )
