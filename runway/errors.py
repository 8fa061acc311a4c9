# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as one tree.

::

    CometAPIError
    ├── NotSubmitted               nothing was bought
    │   ├── InvalidRequest         the service does not accept this request
    │   ├── InvalidManifest        a manifest, or rows of it, cannot be used
    │   ├── QuotaExceeded          the account has no balance
    │   ├── BudgetExceeded         it would pass the limit of what a batch may spend
    │   ├── KeyConflict            the key belongs to another request
    │   ├── LedgerUnavailable      the ledger cannot be read or written
    │   │   └── LedgerDamaged      a row of it cannot be read
    │   ├── LedgerOutdated         the ledger has forgotten purchases: it is an older copy
    │   └── StorageUnavailable     a video could not be stored where it is wanted
    ├── AuthenticationError        no key, a wrong key, or one without permission
    ├── UnexpectedResponse         what answers there is not CometAPI
    ├── ServiceUnavailable         busy or out of reach for now; may be tried again
    ├── SubmissionUncertain        sent, but without an answer: perhaps bought
    ├── GenerationError            bought, and did not end well
    │   ├── GenerationNotVisible   the service does not know it
    │   │   └── UnknownTaskId      an id that was given by hand, and is not recorded
    │   ├── GenerationFailed       it failed, with a reason
    │   ├── GenerationCancelled    somebody cancelled it
    │   └── GenerationTimeout      it did not finish in time
    ├── DeliveryError              finished, but not in the storage yet
    │   ├── DownloadInterrupted    may be tried again
    │   ├── OutputExpired          its address is no longer valid; may be tried again
    │   ├── InvalidOutput          what was delivered is not a whole video
    │   └── StorageError           the storage did not take it
    │       └── StagedFileMissing  what was fetched is gone from this machine
    ├── BatchFailed                of many, none was made or too many failed
    └── RunGivenUp                 a flow run that was started too often

Every message says what happened, to which generation, what is known about the money, and what
to do next.
"""

import shlex
from typing import ClassVar


class CometAPIError(Exception):
    """Root of all errors that this package raises on purpose.

    Attributes:
        key: Idempotency key of the generation, where it is known.
        task_id: Id that CometAPI gave it, where it is known.
        code: The service's own word for the problem, or an empty text.
        http_status: Status of the reply, where there was one.
        retry_after: Seconds to wait before another attempt, where the service named them.
    """

    money: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    then_finish: ClassVar[bool] = False  # whether a bought generation goes on after the advice

    def __init__(
        self,
        what: str,
        *,
        code: str = "",
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.code = code
        self.http_status = http_status
        self.retry_after = retry_after
        self.key: str | None = None
        self.task_id: str | None = None

    def about(self, *, key: str | None = None, task_id: str | None = None) -> "CometAPIError":
        """The same error, telling which generation it is about."""
        self.key = self.key or key
        self.task_id = self.task_id or task_id
        return self

    def __str__(self) -> str:
        return "\n".join(line for line in self._lines() if line)

    def advised(self) -> str:
        """What to do next, or an empty text."""
        key = shlex.quote(self.key) if self.key else "KEY"
        task_id = shlex.quote(self.task_id) if self.task_id else "TASK_ID"
        advice = self.advice.format(task_id=task_id, key=key)
        if self.then_finish and self.task_id:
            advice += f" (then: prefect-cometapi finish {task_id})"
        return advice

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._happened()!r})"

    def _lines(self) -> list[str]:
        known = [("key", self.key), ("task id", self.task_id)]
        which = ", ".join(f"{name} {value}" for name, value in known if value)
        advice = self.advised()
        return [
            self._happened(),
            f"Generation: {which}." if which else "",
            f"Money: {self.money}" if self.money else "",
            f"Next: {advice}" if advice else "",
        ]

    def _happened(self) -> str:
        status = f"HTTP {self.http_status}" if self.http_status else ""
        details = ", ".join(part for part in (self.code, status) if part)
        return f"{self.what} ({details})" if details else self.what


class NotSubmitted(CometAPIError):
    """Nothing was bought."""

    money = "nothing was charged."


class InvalidRequest(NotSubmitted):
    """The service does not accept this request."""

    advice = "correct the request and run it again."


class QuotaExceeded(NotSubmitted):
    """The account has no balance."""

    advice = "top up the account at https://www.cometapi.com/console and run it again."


class BudgetExceeded(NotSubmitted):
    """A submission would pass the limit of what its batch may spend."""

    money = "nothing was charged for it."
    advice = "raise max_spend or max_seconds and run the batch again; it buys what is missing."


class KeyConflict(NotSubmitted):
    """The key belongs to another request."""

    advice = "use another key for another request, or the same request for the same key."


class LedgerUnavailable(NotSubmitted):
    """The ledger cannot be read or written, so nothing was sent."""

    advice = "see that the database at COMETAPI_LEDGER_URL answers, then run it again."


class LedgerDamaged(LedgerUnavailable):
    """A row of the ledger cannot be read, so nothing goes on with what it stands for."""

    money = "nothing was charged for this call; what the row stands for may be bought."
    advice = (
        "mend the row, or put a backup of the ledger in its place; do not delete it, as it tells "
        "what was bought."
    )


class LedgerOutdated(NotSubmitted):
    """The ledger is an older copy, or another one, and has forgotten purchases."""

    money = "nothing was charged for this call; what the ledger has forgotten may be bought."
    advice = (
        "put the newest copy of the ledger in its place, or have the stored videos read back: "
        "prefect-cometapi ledger rebuild"
    )


class StorageUnavailable(NotSubmitted):
    """A video could not be stored where it is wanted, so it was not bought."""

    advice = "name a storage that can be written (storage, or COMETAPI_STORAGE) and run it again."


class AuthenticationError(CometAPIError):
    """There is no key, or it is wrong, or it lacks the permission."""

    money = "nothing was charged for this call."
    advice = (
        "set COMETAPI_KEY, or the key of the credentials block, to one from "
        "https://www.cometapi.com/console/token"
    )
    then_finish = True


class UnexpectedResponse(CometAPIError):
    """What answers at the base URL is not CometAPI."""

    money = "nothing was charged for this call."
    advice = "check COMETAPI_BASE_URL: the service's root, as https://api.cometapi.com"
    then_finish = True


class ServiceUnavailable(CometAPIError):
    """The service is busy or out of reach for now, and did not take the call."""

    money = "nothing was charged for this call."
    advice = "wait and run it again; nothing is bought twice."
    then_finish = True


class SubmissionUncertain(CometAPIError):
    """The request was sent, but no answer says whether it was accepted.

    Attributes:
        may_resubmit: Whether the user lets this run send it once more, and it has not done so.
    """

    may_resubmit: bool = False
    money = "perhaps charged, once. It is never sent again by itself."
    advice = (
        "look in CometAPI's console. If it is there: prefect-cometapi ledger adopt {key} TASK_ID. "
        "If it is still not there 15 minutes after it was sent: "
        "prefect-cometapi ledger resubmit {key}. Then run it again."
    )


class GenerationError(CometAPIError):
    """A generation was bought and did not end well."""

    money = "the generation was accepted, so it may have been charged."


class GenerationNotVisible(GenerationError):
    """The service does not know the generation."""

    advice = (
        "check that the key belongs to the account that bought it, "
        "then: prefect-cometapi finish {task_id}"
    )


class UnknownTaskId(GenerationNotVisible):
    """The service does not know an id that was given by hand, so the ledger does not record it."""

    money = "nothing was charged for this call, and nothing is recorded as bought."
    advice = (
        "compare the id with CometAPI's console, and check that the API key belongs to the account "
        "that bought it. An id that was bought just now may be known in some minutes."
    )


class GenerationFailed(GenerationError):
    """The service gave the generation up.

    Attributes:
        failure_code: The service's code, as SAFETY.INPUT.TEXT or INTERNAL.BAD_OUTPUT.CODE01;
            an open set, to be matched by its beginning.
    """

    money = "accepted, then failed; whether CometAPI refunds it depends on the reason."
    advice = "change the image or the prompt; another attempt is a new generation, with a new key."

    @property
    def failure_code(self) -> str:
        """The service's code, or an empty text."""
        return self.code


class GenerationCancelled(GenerationError):
    """Somebody cancelled the generation upstream."""

    advice = "another attempt is a new generation, with a new key."


class GenerationTimeout(GenerationError):
    """The generation did not finish within the deadline; it goes on upstream."""

    money = "accepted and still running upstream, so it is charged when it succeeds."
    advice = "prefect-cometapi finish {task_id}   (COMETAPI_DEADLINE sets how long to wait)"


class DeliveryError(CometAPIError):
    """The generation is finished, but not in the storage yet."""

    money = "the generation is paid for; fetching it again is free."
    advice = "prefect-cometapi finish {task_id}"


class DownloadInterrupted(DeliveryError):
    """The download broke off."""


class OutputExpired(DeliveryError):
    """The address of the output is no longer valid."""


class InvalidOutput(DeliveryError):
    """What was delivered is not a whole video; nothing appeared in the storage."""


class StorageError(DeliveryError):
    """The storage did not take the video."""


class StagedFileMissing(StorageError):
    """What was fetched is gone from this machine, so it must be fetched again."""


class RunGivenUp(CometAPIError):
    """A flow run was started, by retries and after crashes, more often than is of use."""

    money = "what it bought is in the ledger, and is not paid for again."
    advice = "prefect-cometapi collect finishes it; see in the log why the run kept ending."
