"""The meaning of responses, read by dialect in one table of rules. Pure: no clock, database or network.

`classify` gives the verdict of the first rule that fits, `protection` what makes a resend of a request safe,
`retry_after` the wait that a reply asks for. docs/dialects.md has the same table for people.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from typing import Final

from config.dialects import Dialect, Error
from config.nesting import load_json
from receiver.ledger.calls import Classification, SendContext
from receiver.ledger.states import Protection, SendOutcome
from worker.calls.transport import NoReply, Reply

# No API puts a call off for longer: it has forgotten the key by then.
RETRY_AFTER_MAX = timedelta(hours=24)

# Methods that change nothing (RFC 9110, section 9.2.1).
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

# Outcomes after which the call may be sent again, and Retry-After says when.
RETRIED = frozenset({SendOutcome.LOCKED, SendOutcome.LATER, SendOutcome.UNKNOWN})

# Statuses by which a server says that it did not even begin.
NOT_EXECUTED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_EARLY})

_SECONDS = re.compile(r"-?\d{1,12}(\.\d+)?", re.ASCII)


def classify(dialect: Dialect, context: SendContext, reply: Reply | NoReply, now: datetime) -> Classification:
    """Return what a reply, or its absence, means for its call; `now` is for dates in Retry-After."""
    if isinstance(reply, NoReply) and reply.written:
        reason = f"No answer: {reply.error}. It may have been executed."
        return Classification(SendOutcome.UNKNOWN, open=True, reason=reason)
    if isinstance(reply, NoReply):
        return Classification(SendOutcome.LATER, reason=f"Nothing was sent: {reply.error}.")
    case = ReplyCase(dialect, context, reply)
    rule = next(rule for rule in RULES if rule.fits(case))
    return Classification(
        rule.outcome,
        park=rule.park,
        open=rule.open,
        retry_after=retry_after(reply, now) if rule.outcome in RETRIED else None,
        reason=f"{case.status_in_words}{rule.reason}",
    )


def protection(dialect: Dialect, method: str, path: str) -> Protection:
    """Return what protects a request that is sent again; `path` is the URL's."""
    if dialect.is_keyed(method, path):
        return Protection.KEYED
    if method in SAFE or dialect.is_repeatable(method, path):
        return Protection.REPEATABLE
    return Protection.UNPROTECTED


def retry_after(reply: Reply, now: datetime) -> timedelta | None:
    """Read Retry-After, seconds or a date (RFC 9110, section 10.2.3), as 0 to 24 h; None without one."""
    text = lower_names(reply).get("retry-after", "").strip()
    try:
        if _SECONDS.fullmatch(text):
            wait = timedelta(seconds=float(text))
        else:
            date = parsedate_to_datetime(text)
            wait = (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(wait, timedelta(0)), RETRY_AFTER_MAX)


def lower_names(reply: Reply) -> dict[str, str]:
    """Return a reply's headers by their names in lower case; of repeated ones the last."""
    return {name.lower(): value for name, value in reply.headers}


def top_level_boolean(body: bytes, name: str) -> bool | None:
    """Read a boolean at the top of a JSON body; None where there is none."""
    try:
        parsed = load_json(body)
    except ValueError:
        return None
    value = parsed.get(name) if isinstance(parsed, dict) else None
    return value if isinstance(value, bool) else None


@dataclass(frozen=True)
class ReplyCase:
    """A reply with everything that the rules look at."""

    dialect: Dialect
    context: SendContext
    reply: Reply

    @property
    def status(self) -> int:
        """The reply's status."""
        return self.reply.status

    @property
    def status_in_words(self) -> str:
        """The status with its standard phrase, where it has one: `409 Conflict`."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)

    @property
    def status_class(self) -> str:
        """`2xx` for success, `4xx` for the client's errors, `5xx` for the server's."""
        return f"{self.status // 100}xx"

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers by their names in lower case."""
        return lower_names(self.reply)

    @property
    def keyed(self) -> bool:
        """Whether the request carried a key: without one, no reply is about keys."""
        return self.context.protection == Protection.KEYED

    @property
    def protected(self) -> bool:
        """Whether a live key protects a resend."""
        return self.keyed and self.context.live

    @property
    def replay_by_status(self) -> bool:
        """Whether it is a replay that has a status of its own."""
        return self.keyed and self.status == self.dialect.replay.status

    @cached_property
    def original_succeeded(self) -> bool | None:
        """How the original of such a replay ended; None where the body does not say."""
        return top_level_boolean(self.reply.body, self.dialect.replay.outcome)

    @property
    def replay_by_marker(self) -> bool:
        """Whether a header says that this is a stored response."""
        marker = self.dialect.replay
        return self.keyed and any(self.flag(name) for name in (marker.header, marker.also))

    @property
    def resend_helps(self) -> bool | None:
        """What the API's own header says about sending again; None where it says nothing."""
        return self.flag(self.dialect.should_retry)

    @property
    def asks_for_resend(self) -> bool:
        """Whether it is an error that the API wants to be sent again; a 429 was not executed anyway."""
        error = self.status >= HTTPStatus.BAD_REQUEST and self.status != HTTPStatus.TOO_MANY_REQUESTS
        return error and self.resend_helps is True

    @property
    def deletes_again(self) -> bool:
        """Whether it answers a repeatable DELETE that was sent before."""
        now = self.context
        again = now.open_before and now.method == "DELETE"
        return again and self.dialect.is_repeatable(now.method, now.path)

    @property
    def is_definite_refusal(self) -> bool:
        """Whether it is an error of the client's; a 408 is none, since the server may have acted."""
        return self.status_class == "4xx" and self.status != HTTPStatus.REQUEST_TIMEOUT

    def flag(self, header: str | None) -> bool | None:
        """Read a header of `true` or `false`; None for another value, or without it."""
        value = self.headers.get(header.lower(), "") if header else ""
        return {"true": True, "false": False}.get(value.strip().lower())

    def is_key_error(self, error: Error | None) -> bool:
        """Whether it is this error about the key: its status, and its code as a whole word in the body.

        Anywhere in the body, since the documents name codes and not the shape of what they stand in.
        """
        if error is None or not self.keyed or self.status != error.status:
            return False
        if not error.code:
            # Where a status alone says it, a marker shows a stored response that happens to have that status.
            return not self.replay_by_marker
        word = rb"(?<![A-Za-z0-9_])" + re.escape(error.code.encode()) + rb"(?![A-Za-z0-9_])"
        return re.search(word, self.reply.body) is not None


@dataclass(frozen=True)
class Rule:
    """A reply for which `fits` holds has this outcome; `reason` follows the status in the sentence."""

    fits: Callable[[ReplyCase], bool]
    outcome: SendOutcome
    reason: str
    open: bool = False
    """Whether this send may have been executed all the same."""
    park: bool = False
    """Whether a person must look before anything is sent again."""


# In order: the first rule that fits decides, and the last fits everything.
RULES: Final = (
    # A replay with a status of its own (Stannp's 409): its body says how the original ended.
    Rule(
        lambda case: case.replay_by_status and case.original_succeeded is True,
        SendOutcome.REPLAYED,
        ": the stored answer of a request that succeeded.",
    ),
    Rule(
        lambda case: case.replay_by_status and case.original_succeeded is False,
        SendOutcome.REJECTED,
        ": the stored answer of a request that failed.",
    ),
    Rule(
        lambda case: case.replay_by_status,
        SendOutcome.UNKNOWN,
        ": a stored answer, but its body does not say how the request ended.",
        open=True,
    ),
    # What the API says about the key itself.
    Rule(
        lambda case: case.is_key_error(case.dialect.locked),
        SendOutcome.LOCKED,
        ": a request with this key is still running.",
    ),
    Rule(
        lambda case: case.is_key_error(case.dialect.misused),
        SendOutcome.MISMATCH,
        ": the API knows this key from another request.",
        park=True,
    ),
    # A stored response comes back for as long as the key lives: waiting for another one is no use.
    Rule(
        lambda case: case.replay_by_marker and case.status_class == "2xx",
        SendOutcome.REPLAYED,
        ", stored: it was executed before.",
    ),
    Rule(
        lambda case: case.replay_by_marker and case.status_class == "4xx",
        SendOutcome.REJECTED,
        ", stored: it was rejected before.",
    ),
    Rule(
        lambda case: case.replay_by_marker,
        SendOutcome.UNKNOWN,
        ", stored: every resend will get it, and nobody knows what was done.",
        open=True,
        park=True,
    ),
    Rule(lambda case: case.status_class == "2xx", SendOutcome.SUCCEEDED, "."),
    # The earlier DELETE did it, or somebody else: it is gone either way.
    Rule(
        lambda case: case.deletes_again and case.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE),
        SendOutcome.SUCCEEDED,
        " after an earlier send: it is deleted.",
    ),
    # The API's own word on sending again is followed as far as a key protects a resend.
    Rule(
        lambda case: case.protected and case.asks_for_resend,
        SendOutcome.LATER,
        ": the API asks to send it again; it may have been executed.",
        open=True,
    ),
    Rule(
        lambda case: case.asks_for_resend,
        SendOutcome.UNKNOWN,
        ": the API asks to send it again; it may have been executed.",
        open=True,
    ),
    Rule(
        lambda case: case.resend_helps is False and case.status_class == "5xx",
        SendOutcome.UNKNOWN,
        ": the API says that sending it again cannot help, and it may have been executed.",
        open=True,
        park=True,
    ),
    Rule(
        lambda case: case.status in NOT_EXECUTED and case.resend_helps is not False,
        SendOutcome.LATER,
        ": it was not executed.",
    ),
    Rule(
        lambda case: case.protected and case.status == HTTPStatus.SERVICE_UNAVAILABLE,
        SendOutcome.LATER,
        ": the API is not available; it may have been executed.",
        open=True,
    ),
    Rule(
        lambda case: case.status == HTTPStatus.SERVICE_UNAVAILABLE,
        SendOutcome.UNKNOWN,
        ": the API is not available; it may have been executed.",
        open=True,
    ),
    # On a first send any other 4xx is definite; after an open one it may speak of that one's result.
    Rule(
        lambda case: case.is_definite_refusal and case.context.open_before,
        SendOutcome.UNKNOWN,
        ", but an earlier send may have been executed: is this about that one, or its result?",
        park=True,
    ),
    Rule(lambda case: case.is_definite_refusal, SendOutcome.REJECTED, ": it was not executed."),
    # The rest says nothing of what was done: 5xx, 408, 3xx, and what no standard names.
    Rule(
        lambda case: case.status_class == "3xx",
        SendOutcome.UNKNOWN,
        ", a redirect, which is never followed: it may have been executed.",
        open=True,
    ),
    Rule(lambda _: True, SendOutcome.UNKNOWN, ": it may have been executed.", open=True),
)
