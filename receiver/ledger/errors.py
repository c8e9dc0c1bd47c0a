"""What the ledger raises. A docstring is the message; the edges map the class to a status or an exit code."""


class LedgerError(Exception):
    """The ledger could not do what was asked."""

    def __str__(self) -> str:
        """Return the given sentence, or the class's own."""
        return super().__str__() or (type(self).__doc__ or "")


class LedgerUnavailable(LedgerError):
    """The ledger's database does not answer; nothing was recorded. Try again."""


class CommitUncertain(LedgerUnavailable):
    """The ledger's database does not answer in time; whether this was recorded is not known. Try again."""


class SchemaBehind(LedgerError):
    """The database's schema is older than this release; run `firstseen migrate`."""


class NotAllowed(LedgerError):
    """The event's present state does not allow this."""


class UnknownEvent(LedgerError):
    """No such event is in the ledger."""


class UnknownCall(LedgerError):
    """No such call is in the ledger."""


class UnknownReplay(LedgerError):
    """No such bulk run is in the ledger."""


class BadCursor(LedgerError):
    """This cursor was not made here: leave it out to start from the newest."""
