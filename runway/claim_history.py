# SPDX-License-Identifier: Apache-2.0
"""Which ledger this is and how far its claims have come, so that an older copy is noticed."""

from collections.abc import Sequence

from sqlalchemy import case, select, update

from .database import Database
from .entries import Entry
from .errors import LedgerDamaged, LedgerOutdated
from .ledger_mark import LedgerMark, MarkFile, highest_serial
from .schema import generations, last_serial, versions


class ClaimHistory:
    """The claims of a ledger as numbers, which only grow.

    Every method that asks the database may raise ``LedgerUnavailable``.

    Args:
        database: Where the ledger lies.

    Attributes:
        newest: The highest serial that this process knows of; a later claim has a higher one.
        places_checked: Storages whose marks were compared, and when on the monotonic clock.
        places_marked: Storages in which a mark was written, and when on the monotonic clock.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.newest = 0
        self.places_checked: dict[str, float] = {}
        self.places_marked: dict[str, float] = {}
        self._mark_file = MarkFile(database.file) if database.file else None
        self._compared = False
        self._identity = ""

    async def mark(self) -> LedgerMark:
        """Return which ledger this is, and the serial of its newest claim.

        Raises:
            LedgerDamaged: One of them cannot be read.
        """
        query = select(versions.c.identity, last_serial.label("serial"))
        rows = await self.database.rows(query)
        try:
            (row,) = rows
            mark = LedgerMark.of(row["identity"], row["serial"], self.database.place)
        except (TypeError, ValueError) as error:  # a damaged page may show any number of rows
            raise LedgerDamaged(
                f"in the ledger at {self.database.place} the newest claim's number or the ledger's "
                "identity is damaged"
            ) from error
        self._identity = mark.identity
        return mark

    async def identity(self) -> str:
        """Return which ledger this is, as it was when it was last asked."""
        return self._identity or (await self.mark()).identity

    async def check_current(self, marks: Sequence[LedgerMark] = ()) -> LedgerMark:
        """Return the ledger's mark, if the ledger has forgotten nothing that is known of it.

        Args:
            marks: What storages know of ledgers.

        Raises:
            LedgerOutdated: It has fewer claims than a storage, this process, or the mark beside
                its file knows of, or another ledger's mark lies beside its file.
        """
        # what is known is read first: others may claim keys while the ledger answers
        newest, beside = self.newest, self.mark_beside()
        now = await self.mark()
        if beside and beside.identity != now.identity:
            raise LedgerOutdated(
                f"the ledger at {self.database.place} is not the one that was there before: its "
                f"identity is {now.identity[:8]}, and was {beside.identity[:8]}"
            )
        known = [*marks, beside] if beside else marks
        highest = max(highest_serial(known, now.identity), newest)
        if now.serial < highest:
            raise _outdated(self.database.place, now.serial, highest)
        self.saw_claim(now)
        self._compared = True
        return now

    async def check_once(self) -> None:
        """Compare the ledger with the mark beside its file, the first time in this process.

        Raises:
            LedgerOutdated: As ``check_current`` does.
        """
        if not self._compared:
            await self.check_current()

    def saw_claim(self, mark: LedgerMark) -> None:
        """Note how far the ledger has come, also beside its file."""
        if mark.serial > self.newest or not self._compared:
            self.newest = max(self.newest, mark.serial)
            if self._mark_file:
                self._mark_file.write(mark)

    def check_claim(self, claimed: Entry, newest_before: int) -> None:
        """See that a new claim comes after those that were known when it was made.

        Args:
            claimed: The new claim.
            newest_before: ``newest`` as it was before.

        Raises:
            LedgerOutdated: An older copy of the ledger was put in place meanwhile.
        """
        serial = claimed.serial or 0
        if serial <= newest_before:
            raise _outdated(self.database.place, serial - 1, newest_before)
        self.saw_claim(LedgerMark.of(self._identity, serial, self.database.place))

    async def claims_since(self, serial: int) -> set[int]:
        """Return the serials of the claims that it knows after one."""
        rows = await self.database.rows(
            select(generations.c.serial).where(generations.c.serial > serial)
        )
        return {row["serial"] for row in rows}

    def mark_beside(self) -> LedgerMark | None:
        """Return the mark beside its file, or None."""
        return self._mark_file.read() if self._mark_file else None

    async def skip_to(self, serial: int) -> None:
        """Have later claims get serials above one, though the ledger may not know that claim."""
        floor = case((versions.c.serial_floor > serial, versions.c.serial_floor), else_=serial)
        await self.database.rows(update(versions).values(serial_floor=floor))

    async def accept_missing(self, serial: int) -> None:
        """Go on without the claims up to a serial that the ledger does not know."""
        await self.skip_to(serial)
        if self._mark_file:
            self._mark_file.write(await self.mark())


def _outdated(place: str, serial: int, known: int) -> LedgerOutdated:
    return LedgerOutdated(
        f"the ledger at {place} knows claims up to number {serial}, and there were {known}: it is "
        "an older copy, which has forgotten purchases"
    )
