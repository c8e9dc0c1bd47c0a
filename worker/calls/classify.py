"""What an answer means for its call: pure, by dialect, into a closed set of outcomes."""

from dataclasses import replace
from datetime import datetime

from config.dialects import Dialect
from receiver.ledger.states import Judgement, Protection, SendOutcome, Standing
from worker.calls.answers import Answer, Failure
from worker.calls.rules import RULES, AnswerCase

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

RETRIED = frozenset({SendOutcome.LOCKED, SendOutcome.LATER, SendOutcome.UNKNOWN})
"""Outcomes after which the call may be sent again, and Retry-After says when."""


def classify(dialect: Dialect, standing: Standing, got: Answer | Failure, now: datetime) -> Judgement:
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


def _failure(got: Failure) -> Judgement:
    if got.written:
        reason = f"No answer: {got.error}. It may have been executed."
        return Judgement(SendOutcome.UNKNOWN, open=True, reason=reason)
    return Judgement(SendOutcome.LATER, reason=f"Nothing was sent: {got.error}.")
