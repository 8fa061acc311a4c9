# SPDX-License-Identifier: Apache-2.0
"""Identity of a ledger and the serial of its newest claim, which reveal an older copy.

Each claim gets the next serial. A ledger whose newest serial is lower than one that was seen before
has lost claims, so it would buy their idempotency keys again.
"""

from collections.abc import Sequence

from ..errors import LedgerCorrupted, LedgerOutdated
from .database import Database
from .entry import Entry
from .marks import LedgerMark, MarkFile, highest_serial
from .schema import GENERATIONS, LAST_SERIAL, VERSIONS
from .statement import Sql


class ClaimHistory:
    """Record of the highest claim serial that this process has seen in a ledger.

    Every method that queries the database may raise ``LedgerUnavailable``.

    Args:
        database: Database of the ledger.

    Attributes:
        newest: Highest serial that this process knows; a later claim has a higher one.
        locations_checked: Storages whose marks were compared, and the monotonic time of it.
        locations_marked: Storages with a mark of this process, and the monotonic time of its write.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.newest = 0
        self.locations_checked: dict[str, float] = {}
        self.locations_marked: dict[str, float] = {}
        self._mark_file = MarkFile(database.file) if database.file else None
        self._compared = False
        self._identity = ""

    async def mark(self) -> LedgerMark:
        """Return the identity of the ledger and the serial of its newest claim.

        Raises:
            LedgerCorrupted: The identity or the serial is corrupted.
        """
        query = f"SELECT identity, {LAST_SERIAL.text} AS serial FROM {VERSIONS}"
        rows = await self.database.rows(Sql(query))
        try:
            (row,) = rows
            mark = LedgerMark.of(row["identity"], row["serial"], self.database.redacted_url)
        except (TypeError, ValueError) as error:  # a corrupted page may show any number of rows
            raise LedgerCorrupted(
                f"in the ledger at {self.database.redacted_url} the newest claim's number or the "
                "ledger's identity is corrupted"
            ) from error
        self._identity = mark.identity
        return mark

    async def identity(self) -> str:
        """Return the identity of the ledger, as last read."""
        return self._identity or (await self.mark()).identity

    async def check_current(self, marks: Sequence[LedgerMark] = ()) -> LedgerMark:
        """Return the mark of the ledger after checking that it has lost no known claim.

        Args:
            marks: Marks of ledgers that were found in storages.

        Raises:
            LedgerOutdated: A storage, this process or the mark beside the ledger's file knows of a
                newer claim, or the mark beside the file belongs to another ledger.
        """
        # Known serials are read before the ledger, since others may claim keys in between.
        newest, beside = self.newest, self.mark_beside()
        now = await self.mark()
        if beside and beside.identity != now.identity:
            raise LedgerOutdated(
                f"the ledger at {self.database.redacted_url} is not the one that was there before: "
                f"its identity is {now.identity[:8]}, and was {beside.identity[:8]}"
            )
        known = [*marks, beside] if beside else marks
        highest = max(highest_serial(known, now.identity), newest)
        if now.serial < highest:
            raise _outdated(self.database.redacted_url, now.serial, highest)
        self.saw_claim(now)
        self._compared = True
        return now

    async def check_once(self) -> None:
        """Compare the ledger with the mark beside its file, once per process.

        Raises:
            LedgerOutdated: Same as for ``check_current``.
        """
        if not self._compared:
            await self.check_current()

    def saw_claim(self, mark: LedgerMark) -> None:
        """Remember the newest serial, and write it to the mark beside the ledger's file."""
        if mark.serial > self.newest or not self._compared:
            self.newest = max(self.newest, mark.serial)
            if self._mark_file:
                self._mark_file.write(mark)

    def check_claim(self, claimed: Entry, newest_before: int) -> None:
        """Check that a new claim has a higher serial than those known before it.

        Args:
            claimed: Entry with the new claim.
            newest_before: Value of ``newest`` before the claim was written.

        Raises:
            LedgerOutdated: The ledger was replaced by an older copy in the meantime.
        """
        serial = claimed.serial or 0
        if serial <= newest_before:
            raise _outdated(self.database.redacted_url, serial - 1, newest_before)
        self.saw_claim(LedgerMark.of(self._identity, serial, self.database.redacted_url))

    async def claims_since(self, serial: int) -> set[int]:
        """Return the serials in the ledger that are higher than the given one."""
        rows = await self.database.rows(
            Sql(f"SELECT serial FROM {GENERATIONS} WHERE serial > :serial", {"serial": serial})
        )
        return {row["serial"] for row in rows}

    def mark_beside(self) -> LedgerMark | None:
        """Return the mark beside the ledger's file, or None."""
        return self._mark_file.read() if self._mark_file else None

    async def skip_to(self, serial: int) -> None:
        """Give later claims serials above the given one, even if the ledger lacks that claim."""
        raised = f"UPDATE {VERSIONS} SET serial_floor = :serial WHERE serial_floor < :serial"
        await self.database.rows(Sql(raised, {"serial": serial}))

    async def accept_missing(self, serial: int) -> None:
        """Continue without the missing claims up to a serial, as the user decided."""
        await self.skip_to(serial)
        if self._mark_file:
            self._mark_file.write(await self.mark())


def _outdated(location: str, serial: int, known: int) -> LedgerOutdated:
    return LedgerOutdated(
        f"the ledger at {location} has claims up to number {serial}, but claim {known} was seen "
        "before: it is an older copy, which lacks purchases"
    )
