"""The tables of totals and of alerts."""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from receiver.ledger.models import table
from receiver.ledger.texts import TEXT_MAX


class Tally(SQLModel, table=True):
    """A total that only grows, spread over a few rows; `tally.py` says what is counted."""

    kind: str = Field(primary_key=True, max_length=16)
    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    what: str = Field(primary_key=True, max_length=TEXT_MAX)
    slot: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    count: int = Field(sa_type=BigInteger)


class Alert(SQLModel, table=True):
    """What was told of one subject: the row decides which worker tells the next, and when."""

    kind: str = Field(primary_key=True, max_length=16)
    name: str = Field(primary_key=True, max_length=TEXT_MAX)
    what: str = Field(primary_key=True, max_length=TEXT_MAX)
    told: int = Field(sa_type=BigInteger)
    """The total when it was last told."""
    told_at: datetime | None = None
    taken_until: datetime | None = None
    """While a worker sends, until when nobody else does."""


TALLY, ALERT = table(Tally), table(Alert)
