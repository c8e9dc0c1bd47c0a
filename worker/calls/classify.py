"""What an answer means for its call: pure, by dialect, into a closed set of outcomes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from config.dialects import Dialect, Error
from config.nesting import load_json
from receiver.ledger.calls import Classification, SendContext
from receiver.ledger.states import Protection, SendOutcome

# What came back of a send, as the rules read it.


RETRY_AFTER_MAX = timedelta(hours=24)
"""No API puts a call off for longer: keys are forgotten meanwhile."""

_SECONDS = re.compile(r"-?\d{1,12}(\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer, its header names in lower case; `truncated` when its body is over the cap."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False

    def says(self, error: Error | None) -> bool:
        """Whether it is this error: its status, and its code as a whole word anywhere in the body.

        Anywhere, since the documents name codes and not the shape of what they stand in.
        """
        if error is None or self.status != error.status:
            return False
        code = re.escape(error.code.encode())
        return (
            not code or re.search(rb"(?<![A-Za-z0-9_])" + code + rb"(?![A-Za-z0-9_])", self.body) is not None
        )

    def flag(self, header: str | None) -> bool | None:
        """Read a header of `true` or `false`; None for another value, or without it."""
        value = self.headers.get(header.lower(), "") if header else ""
        return {"true": True, "false": False}.get(value.strip().lower())

    def boolean(self, name: str) -> bool | None:
        """Read a boolean at the top of the JSON body; None where there is none."""
        try:
            parsed = load_json(self.body)
        except ValueError:
            return None
        value = parsed.get(name) if isinstance(parsed, dict) else None
        return value if isinstance(value, bool) else None

    def retry_after(self, now: datetime) -> timedelta | None:
        """Read Retry-After, seconds or a date (RFC 9110, section 10.2.3), as 0 to 24 h; None without one."""
        text = self.headers.get("retry-after", "").strip()
        wait = timedelta(seconds=float(text)) if _SECONDS.fullmatch(text) else _until(text, now)
        return None if wait is None else min(max(wait, timedelta(0)), RETRY_AFTER_MAX)


def _until(text: str, now: datetime) -> timedelta | None:
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


@dataclass(frozen=True)
class Failure:
    """No answer. `written` is False when no byte had left: refused, DNS, TLS, no free connection.

    `error` is a short sentence without secrets.
    """

    error: str
    written: bool


# The rules that an answer is read by, in their order; each has a verdict or leaves it to the next.


@dataclass(frozen=True)
class AnswerCase:
    """One answer with all that it is read by."""

    dialect: Dialect
    standing: SendContext
    answer: Answer

    @property
    def keyed(self) -> bool:
        """Whether the request carried a key: without one, no answer is about keys."""
        return self.standing.protection == Protection.KEYED

    @property
    def status(self) -> int:
        """The answer's status."""
        return self.answer.status

    @property
    def hint(self) -> bool | None:
        """What the API says about sending again, where it says so."""
        return self.answer.flag(self.dialect.should_retry)

    @property
    def replayed(self) -> bool:
        """Whether a marker says that this is a stored answer."""
        marker = self.dialect.replay
        return self.keyed and any(self.answer.flag(name) for name in (marker.header, marker.also))

    @property
    def told(self) -> str:
        """The status in words."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


Rule = Callable[[AnswerCase], Classification | None]


def _stored_by_status(case: AnswerCase) -> Classification | None:
    """Read a replay that has a status of its own: the body says how the original ended."""
    replay = case.dialect.replay
    if not case.keyed or case.status != replay.status:
        return None
    match case.answer.boolean(replay.outcome):
        case True:
            return Classification(
                SendOutcome.REPLAYED, reason=f"{case.told}: the stored answer of a request that succeeded."
            )
        case False:
            return Classification(
                SendOutcome.REJECTED, reason=f"{case.told}: the stored answer of a request that failed."
            )
        case None:
            reason = f"{case.told}: a stored answer, but its body does not say how the request ended."
            return Classification(SendOutcome.UNKNOWN, open=True, reason=reason)


def _key_error(case: AnswerCase) -> Classification | None:
    """Read what the API says about the key itself.

    Where a status alone says it, a marker shows that it does not: a stored answer with that status.
    """
    if not case.keyed:
        return None
    locked, misused = (
        error if error and (error.code or not case.replayed) else None
        for error in (case.dialect.locked, case.dialect.misused)
    )
    if case.answer.says(locked):
        return Classification(
            SendOutcome.LOCKED, reason=f"{case.told}: a request with this key is still running."
        )
    if case.answer.says(misused):
        reason = f"{case.told}: the API knows this key from another request."
        return Classification(SendOutcome.MISMATCH, park=True, reason=reason)
    return None


def _marked(case: AnswerCase) -> Classification | None:
    """Read a replay with a marker. A stored answer comes back for as long as the key lives."""
    if not case.replayed:
        return None
    match case.status // 100:
        case 2:
            return Classification(
                SendOutcome.REPLAYED, reason=f"{case.told}, stored: it was executed before."
            )
        case 4:
            return Classification(
                SendOutcome.REJECTED, reason=f"{case.told}, stored: it was rejected before."
            )
    reason = f"{case.told}, stored: every resend will get it, and nobody knows what was done."
    return Classification(SendOutcome.UNKNOWN, park=True, open=True, reason=reason)


def _success(case: AnswerCase) -> Classification | None:
    if case.status // 100 == 2:  # noqa: PLR2004 - the class of success
        return Classification(SendOutcome.SUCCEEDED, reason=f"{case.told}.")
    return None


def _deleted(case: AnswerCase) -> Classification | None:
    """Read "not there" after a DELETE that was sent before: that one did it, or somebody else."""
    now = case.standing
    gone = case.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    if (
        gone
        and now.open_before
        and now.method == "DELETE"
        and case.dialect.is_repeatable(now.method, now.path)
    ):
        return Classification(
            SendOutcome.SUCCEEDED, reason=f"{case.told} after an earlier send: it is deleted."
        )
    return None


def _hinted(case: AnswerCase) -> Classification | None:
    """Follow the API's own word on sending again, as far as a resend is protected."""
    if case.status < HTTPStatus.BAD_REQUEST or case.hint is None:
        return None
    if case.hint and case.status != HTTPStatus.TOO_MANY_REQUESTS:
        return _protected_later(case, "the API asks to send it again")
    if not case.hint and case.status // 100 == 5:  # noqa: PLR2004 - the class of server errors
        reason = (
            f"{case.told}: the API says that sending it again cannot help, and it may have been executed."
        )
        return Classification(SendOutcome.UNKNOWN, park=True, open=True, reason=reason)
    return None


def _refused_for_now(case: AnswerCase) -> Classification | None:
    now = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_EARLY)
    if case.status in now and case.hint is not False:
        return Classification(SendOutcome.LATER, reason=f"{case.told}: it was not executed.")
    return None


def _unavailable(case: AnswerCase) -> Classification | None:
    if case.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return _protected_later(case, "the API is not available")
    return None


def _client_error(case: AnswerCase) -> Classification | None:
    if case.status // 100 != 4 or case.status == HTTPStatus.REQUEST_TIMEOUT:  # noqa: PLR2004 - client errors
        return None
    if case.standing.open_before:
        reason = (
            f"{case.told}, but an earlier send may have been executed: is this about that one, or its result?"
        )
        return Classification(SendOutcome.UNKNOWN, park=True, reason=reason)
    return Classification(SendOutcome.REJECTED, reason=f"{case.told}: it was not executed.")


def _anything_else(case: AnswerCase) -> Classification:
    """Read 5xx, 408, 3xx and what no standard names: nobody knows what was done."""
    kind = ", a redirect, which is never followed" if case.status // 100 == 3 else ""  # noqa: PLR2004
    return Classification(
        SendOutcome.UNKNOWN, open=True, reason=f"{case.told}{kind}: it may have been executed."
    )


def _protected_later(case: AnswerCase, why: str) -> Classification:
    """Put it off while a live key protects a resend; else nobody knows."""
    protected = case.keyed and case.standing.live
    outcome = SendOutcome.LATER if protected else SendOutcome.UNKNOWN
    return Classification(outcome, open=True, reason=f"{case.told}: {why}; it may have been executed.")


RULES: tuple[Rule, ...] = (
    _stored_by_status,
    _key_error,
    _marked,
    _success,
    _deleted,
    _hinted,
    _refused_for_now,
    _unavailable,
    _client_error,
    _anything_else,
)
"""In order; the last one has a verdict for everything."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

RETRIED = frozenset({SendOutcome.LOCKED, SendOutcome.LATER, SendOutcome.UNKNOWN})
"""Outcomes after which the call may be sent again, and Retry-After says when."""


def classify(dialect: Dialect, standing: SendContext, got: Answer | Failure, now: datetime) -> Classification:
    """Return the verdict of the first rule that has one; `now` is the ledger's, for dates in Retry-After."""
    if isinstance(got, Failure):
        return _failure(got)
    case = AnswerCase(dialect, standing, got)
    verdict = next(found for rule in RULES if (found := rule(case)))
    return replace(verdict, retry_after=got.retry_after(now)) if verdict.outcome in RETRIED else verdict


def protection(dialect: Dialect, method: str, path: str) -> Protection:
    """Say what protects a request that is sent again; `path` is the URL's."""
    if dialect.is_keyed(method, path):
        return Protection.KEYED
    if method in SAFE or dialect.is_repeatable(method, path):
        return Protection.REPEATABLE
    return Protection.UNPROTECTED


def _failure(got: Failure) -> Classification:
    if got.written:
        reason = f"No answer: {got.error}. It may have been executed."
        return Classification(SendOutcome.UNKNOWN, open=True, reason=reason)
    return Classification(SendOutcome.LATER, reason=f"Nothing was sent: {got.error}.")
