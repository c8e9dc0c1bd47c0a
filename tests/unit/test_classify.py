"""`classify`: a table of responses in every dialect, and properties that hold for any response."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config.dialects import load_dialects
from receiver.ledger.calls import Classification, SendContext
from receiver.ledger.states import Protection, SendOutcome
from worker.calls.classify import classify, protection
from worker.calls.transport import NoReply, Reply

DIALECTS = load_dialects()
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
KEYED, REPEATABLE, UNPROTECTED = Protection
CONTEXTS = {
    "first": SendContext(open_before=False, live=True, protection=KEYED, method="POST"),
    "again": SendContext(open_before=True, live=True, protection=KEYED, method="POST"),
    "late": SendContext(open_before=True, live=False, protection=KEYED, method="POST"),
    "bare": SendContext(open_before=False, live=False, protection=UNPROTECTED, method="POST"),
    "bare again": SendContext(open_before=True, live=False, protection=UNPROTECTED, method="POST"),
    "put again": SendContext(open_before=True, live=False, protection=REPEATABLE, method="PUT", path="/a/1"),
    "delete": SendContext(open_before=False, live=False, protection=REPEATABLE, method="DELETE", path="/a/1"),
    "delete again": SendContext(
        open_before=True, live=False, protection=REPEATABLE, method="DELETE", path="/a/1"
    ),
    "keyed delete again": SendContext(
        open_before=True, live=True, protection=KEYED, method="DELETE", path="/a/1"
    ),
}
MARKERS = {
    "firstseen": {"idempotent-replayed": "true"},
    "chronapilot": {"chronapilot-idempotent-replay": "True "},
    "salesly": {"idempotent-replayed": "true"},
    "stripe": {"idempotent-replayed": "true"},
    "ietf": {"idempotency-replayed": "true"},
}
HINTS = {"+retry": "true", "-retry": "false", "?retry": "perhaps"}

# Dialect | response | context | classification. A response is a status, words of its body, `+marker` for the
# dialect's replay header and `+retry`, `-retry` or `?retry` for its hint. A classification is the outcome,
# `open` if the send stays open, and `park` if a person must decide.
TABLE = """
every      | 200                                  | first              | succeeded
every      | 201                                  | again              | succeeded
every      | 204                                  | late               | succeeded
every      | 200                                  | bare               | succeeded

celper     | 409 IDEMPOTENCY_CONFLICT             | first              | mismatch park
celper     | 409 IDEMPOTENCY_CONFLICT             | again              | mismatch park
celper     | 409 IDEMPOTENCY_CONFLICTS            | first              | rejected
celper     | 409 NO_IDEMPOTENCY_CONFLICT          | first              | rejected
celper     | 409 ALREADY_INVITED                  | first              | rejected
celper     | 409 ALREADY_INVITED                  | again              | unknown park
celper     | 422 IDEMPOTENCY_CONFLICT             | first              | rejected
celper     | 409 IDEMPOTENCY_CONFLICT             | bare               | rejected
chronapilot| 409 idempotency_key_in_use           | first              | mismatch park
chronapilot| 409 idempotency_key_in_use           | again              | mismatch park
salesly    | 422 idempotency_conflict             | again              | mismatch park
salesly    | 422 validation_error                 | first              | rejected
salesly    | 409 idempotency_conflict             | first              | rejected
telness    | 409 idempotency_key_mismatch         | again              | mismatch park
telness    | 409 idempotency_key_locked           | again              | locked
telness    | 409 idempotency_key_locked           | late               | locked
telness    | 409 idempotency_key_locked           | bare               | rejected
telness    | 409 order_exists                     | first              | rejected
telness    | 409 order_exists                     | again              | unknown park
firstseen  | 422 idempotency_key_mismatch         | again              | mismatch park
firstseen  | 409 idempotency_key_locked           | again              | locked
ietf       | 409                                  | again              | locked
ietf       | 422                                  | again              | mismatch park
ietf       | 409 +marker                          | again              | rejected
ietf       | 201 +marker                          | again              | replayed
ietf       | 409                                  | put again          | unknown park
ietf       | 422                                  | put again          | unknown park
stripe     | 409                                  | again              | locked
stripe     | 409 lock_timeout +retry              | again              | locked
stripe     | 409 +marker                          | again              | rejected
stripe     | 400 idempotency_error                | again              | mismatch park
stripe     | 400 invalid_request_error            | first              | rejected
paypal     | 409 PREVIOUS_REQUEST_IN_PROGRESS     | again              | locked
paypal     | 409 RESOURCE_CONFLICT                | first              | rejected
paypal     | 422 PAYPAL_REQUEST_ID_PREVIOUSLY_USED| again              | mismatch park
paypal     | 422 DUPLICATE_INVOICE_ID             | first              | rejected
none       | 409                                  | bare               | rejected
none       | 409                                  | bare again         | unknown park

stannp     | 409 {"success":true,"data":{}}       | again              | replayed
stannp     | 409 {"success":true,"data":{}}       | first              | replayed
stannp     | 409 {"success":false,"error":"x"}    | again              | rejected
stannp     | 409 {"success":"true"}               | again              | unknown open
stannp     | 409 {"data":{"success":true}}        | again              | unknown open
stannp     | 409 [{"success":true}]               | again              | unknown open
stannp     | 409 <h1>Conflict</h1>                | again              | unknown open
stannp     | 409                                  | again              | unknown open
stannp     | 409 {"success":true}                 | bare               | rejected
stannp     | 200 {"success":false}                | first              | succeeded

chronapilot| 201 +marker                          | again              | replayed
salesly    | 201 +marker                          | again              | replayed
stripe     | 200 +marker                          | again              | replayed
firstseen  | 200 +marker                          | first              | replayed
chronapilot| 404 +marker                          | again              | rejected
chronapilot| 429 +marker                          | again              | rejected
chronapilot| 404 +marker                          | keyed delete again | rejected
chronapilot| 409 idempotency_key_in_use +marker   | again              | mismatch park
chronapilot| 500 +marker                          | again              | unknown open park
chronapilot| 302 +marker                          | again              | unknown open park
stripe     | 500 +marker +retry                   | again              | unknown open park
stripe     | 402 +marker -retry                   | again              | rejected
salesly    | 201 +marker                          | bare               | succeeded
salesly    | 404 +marker                          | bare again         | unknown park

celper     | 404                                  | delete again       | succeeded
celper     | 410                                  | delete again       | succeeded
celper     | 404                                  | delete             | rejected
celper     | 403                                  | delete again       | unknown park
chronapilot| 404                                  | keyed delete again | succeeded
salesly    | 404                                  | keyed delete again | unknown park
telness    | 404                                  | keyed delete again | unknown park
none       | 404                                  | delete again       | unknown park
salesly    | 404                                  | put again          | unknown park

stripe     | 500 +retry                           | first              | later open
stripe     | 500 +retry                           | late               | unknown open
stripe     | 500 +retry                           | bare               | unknown open
stripe     | 400 +retry                           | first              | later open
stripe     | 400 +retry                           | again              | later open
stripe     | 429 +retry                           | first              | later
stripe     | 500 -retry                           | first              | unknown open park
stripe     | 503 -retry                           | first              | unknown open park
stripe     | 429 -retry                           | first              | rejected
stripe     | 429 -retry                           | again              | unknown park
stripe     | 425 -retry                           | first              | rejected
stripe     | 402 -retry                           | first              | rejected
stripe     | 402 -retry                           | again              | unknown park
stripe     | 408 -retry                           | first              | unknown open
stripe     | 503 ?retry                           | first              | later open
stripe     | 200 -retry                           | first              | succeeded
stripe     | 302 +retry                           | first              | unknown open
celper     | 500 +retry                           | first              | unknown open

every      | 429                                  | first              | later
every      | 429                                  | again              | later
every      | 429                                  | late               | later
every      | 429                                  | bare               | later
every      | 425                                  | again              | later
every      | 408                                  | first              | unknown open
every      | 408                                  | again              | unknown open
every      | 503                                  | first              | later open
every      | 503                                  | again              | later open
every      | 503                                  | late               | unknown open
every      | 503                                  | bare               | unknown open
every      | 503                                  | put again          | unknown open
every      | 500                                  | first              | unknown open
every      | 502                                  | again              | unknown open
every      | 504                                  | bare               | unknown open
every      | 302                                  | first              | unknown open
every      | 304                                  | again              | unknown open
every      | 101                                  | first              | unknown open
every      | 600                                  | first              | unknown open
every      | 0                                    | again              | unknown open
every      | 401                                  | first              | rejected
every      | 404                                  | first              | rejected
every      | 418                                  | bare               | rejected
every      | 401                                  | again              | unknown park
every      | 403                                  | late               | unknown park
every      | 404                                  | bare again         | unknown park
"""


def rows() -> list[tuple[str, str, str, str]]:
    """Return the table's rows; `every` stands for one row of each dialect."""
    found = []
    for line in filter(None, TABLE.splitlines()):
        name, response, context, meaning = (cell.strip() for cell in line.split("|"))
        found += [(each, response, context, meaning) for each in (DIALECTS if name == "every" else [name])]
    return found


def answer(dialect: str, response: str) -> Reply:
    """Return the response that a cell of the table describes."""
    status, _, rest = response.partition(" ")
    words = rest.split(" ") if rest else []
    headers = {"content-type": "text/plain"}
    for word in words:
        headers |= MARKERS[dialect] if word == "+marker" else {}
        headers |= {"stripe-should-retry": HINTS[word]} if word in HINTS else {}
    body = " ".join(word for word in words if word != "+marker" and word not in HINTS)
    return Reply(int(status), tuple(headers.items()), body.encode())


def written(verdict: Classification) -> str:
    """Return a classification as the table writes it."""
    return verdict.outcome + " open" * verdict.open + " park" * verdict.park


@pytest.mark.parametrize(("dialect", "response", "context", "meaning"), rows())
def test_the_table(dialect: str, response: str, context: str, meaning: str) -> None:
    """Dialect, response and context decide; the reason begins with the status."""
    verdict = classify(DIALECTS[dialect], CONTEXTS[context], answer(dialect, response), NOW)
    assert written(verdict) == meaning, verdict
    assert verdict.reason.startswith(response.split(maxsplit=1)[0])
    assert verdict.reason.endswith((".", "?"))


def test_the_table_has_every_dialect_and_context() -> None:
    """A new dialect needs rows of its own."""
    own = {line.split("|")[0].strip() for line in TABLE.splitlines() if line}
    assert own - {"every"} == set(DIALECTS)
    assert {context for _, _, context, _ in rows()} == set(CONTEXTS)


@pytest.mark.parametrize("context", CONTEXTS.values())
def test_no_response(context: SendContext) -> None:
    """A request that never left was not executed; one that left may have been."""
    refused = classify(DIALECTS["celper"], context, NoReply("connection refused", written=False), NOW)
    assert (written(refused), refused.reason) == ("later", "Nothing was sent: connection refused.")
    lost = classify(DIALECTS["celper"], context, NoReply("the connection was reset", written=True), NOW)
    assert written(lost) == "unknown open"
    assert lost.reason == "No answer: the connection was reset. It may have been executed."


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 1.5 ", 1.5),
        ("-3", 0),
        ("90000", 86_400),
        ("999999999999", 86_400),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30),
        ("Monday, 23-Nov-26 12:00:30 GMT", 30),
        ("Mon Nov 23 12:00:30 2026", 30),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0),
        ("Wed, 25 Nov 2026 12:00:00 GMT", 86_400),
        ("", None),
        ("soon", None),
        ("1e3", None),
        ("nan", None),
        ("9" * 5_000, None),
        ("Mon, 99 Nov 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """Seconds, or any of HTTP's three date formats (RFC 9110, section 5.6.7), up to a day ahead."""
    response = Reply(429, (("Retry-After", value),), b"")
    verdict = classify(DIALECTS["celper"], CONTEXTS["first"], response, NOW)
    assert verdict.retry_after == (None if seconds is None else timedelta(seconds=seconds))


def test_a_final_outcome_has_no_retry_after() -> None:
    for status, waits in ((200, False), (404, False), (429, True), (503, True), (500, True)):
        response = Reply(status, (("Retry-After", "7"),), b"")
        verdict = classify(DIALECTS["celper"], CONTEXTS["first"], response, NOW)
        assert (verdict.retry_after is not None) == waits, status


@pytest.mark.parametrize(
    ("dialect", "method", "path", "found"),
    [
        ("celper", "POST", "/v1/candidates", KEYED),
        ("celper", "POST", "/v1/candidates/c1/hire", UNPROTECTED),
        ("celper", "PATCH", "/v1/candidates/c1", REPEATABLE),
        ("celper", "PUT", "/v1/candidates/c1", UNPROTECTED),
        ("chronapilot", "DELETE", "/v1/events/e1", KEYED),
        ("salesly", "PUT", "/contacts/c1", KEYED),
        ("stannp", "POST", "/api/v1/letters/create", KEYED),
        ("stannp", "DELETE", "/api/v1/letters/1", UNPROTECTED),
        ("ietf", "PATCH", "/a", KEYED),
        ("ietf", "PUT", "/a", REPEATABLE),
        ("stripe", "DELETE", "/v1/customers/cus_1", REPEATABLE),
        ("paypal", "PATCH", "/v2/checkout/orders/1", UNPROTECTED),
        ("none", "POST", "/", UNPROTECTED),
        ("none", "DELETE", "/a", UNPROTECTED),
        ("none", "GET", "/a", REPEATABLE),
    ],
)
def test_protection(dialect: str, method: str, path: str, found: Protection) -> None:
    """A key where the API takes one, else whether the API calls the request safe to repeat."""
    assert protection(DIALECTS[dialect], method, path) == found


NAMES = st.sampled_from(["retry-after", "stripe-should-retry", "idempotent-replayed", "content-type"])
VALUES = st.sampled_from(["true", "false", "1", "Mon, 23 Nov 2026 12:00:30 GMT"]) | st.text(max_size=40)
CODES = sorted({e.code.encode() for d in DIALECTS.values() for e in (d.locked, d.misused) if e and e.code})
BODIES = st.sampled_from([*CODES, b'{"success":true}', b'{"success":false}']) | st.binary(max_size=60)
STATUSES = st.sampled_from([200, 201, 302, 400, 404, 408, 409, 410, 422, 425, 429, 500, 503])
RESPONSES = st.builds(
    Reply,
    STATUSES | st.integers(-1, 1_000),
    st.dictionaries(NAMES, VALUES).map(lambda headers: tuple(headers.items())),
    BODIES,
    st.booleans(),
)
CONTEXT_VALUES = st.builds(
    SendContext,
    st.booleans(),
    st.booleans(),
    st.sampled_from(Protection),
    st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]),
    st.just("/v1/things/1"),
)
FINAL = {SendOutcome.SUCCEEDED, SendOutcome.REPLAYED, SendOutcome.REJECTED}


@given(st.sampled_from(sorted(DIALECTS)), CONTEXT_VALUES, RESPONSES)
@example("stannp", CONTEXTS["again"], Reply(409, (), b"[" * 100_000))
@example("telness", replace(CONTEXTS["bare"], live=True), Reply(503, (), b""))
@example("stannp", CONTEXTS["again"], Reply(409, (), b'{"success": tr', truncated=True))
@example("celper", CONTEXTS["again"], Reply(429, (("retry-after", "Mon, 23 Nov 0001 00:00:00 +2359"),), b""))
def test_any_response_is_classified_safely(name: str, context: SendContext, response: Reply) -> None:
    """Nothing raises, and no response leads to a second effect or a false end."""
    verdict = classify(DIALECTS[name], context, response, NOW)
    assert verdict.retry_after is None or timedelta(0) <= verdict.retry_after <= timedelta(hours=24)
    if verdict.outcome in (SendOutcome.SUCCEEDED, SendOutcome.REPLAYED):
        resent = context.method == "DELETE" and context.open_before and response.status in (404, 410)
        assert response.status // 100 == 2 or (name == "stannp" and response.status == 409) or resent
    if verdict.outcome in FINAL:
        assert (verdict.open, verdict.park, verdict.retry_after) == (False, False, None)
    if verdict.outcome == SendOutcome.MISMATCH:
        assert verdict.park
    if verdict.outcome in (SendOutcome.MISMATCH, SendOutcome.LOCKED):
        assert context.protection == KEYED
    if verdict.outcome == SendOutcome.UNKNOWN:
        assert verdict.open or verdict.park
    if not verdict.open:
        assert response.status // 100 in (2, 4), "only a definite answer closes a send"
    if verdict.outcome == SendOutcome.LATER and verdict.open:
        assert context.live
        assert context.protection == KEYED
    if verdict.outcome == SendOutcome.REJECTED and context.open_before:
        assert context.protection == KEYED, "only a stored response tells about an earlier send"


@given(st.sampled_from(sorted(DIALECTS)), CONTEXT_VALUES, RESPONSES)
def test_reasons_show_no_body(name: str, context: SendContext, response: Reply) -> None:
    """A reason is one line and contains nothing of the body."""
    marked = Reply(response.status, response.headers, response.body + b" hunter2")
    verdict = classify(DIALECTS[name], context, marked, NOW)
    assert "hunter2" not in verdict.reason
    assert verdict.reason.isascii()
    assert "\n" not in verdict.reason
