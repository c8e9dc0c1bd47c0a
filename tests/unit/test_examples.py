"""The shipped handlers and those of the documents, tested as users test theirs."""

import json
import re
from typing import Any

import httpx
import pytest

from firstseen.send import PAYLOADS
from receiver.signatures import InvalidSignature, Request
from tests.services.checkout import CHECKOUT
from worker import registry
from worker.handlers.example import invoice_paid, order_created
from worker.testing import answer, calls, ends, event

SAMPLES = json.loads(PAYLOADS.read_text(encoding="utf-8"))
PAID = event("stripe", "invoice.paid", data=SAMPLES["stripe"]["payloads"]["invoice.paid"])
ORDER = event("shopify", "orders/create", data=SAMPLES["shopify"]["payloads"]["orders/create"])
CONTACT = {"salesly POST /contacts": answer(201, json={"data": {"id": "cont_1"}})}
LETTER = {"success": True, "data": {"id": "1"}}


def run_code_of(path: str, names: dict[str, Any]) -> None:
    """Run the Python blocks of a document, with the names that it leaves to its reader."""
    for code in re.findall(r"```python\n(.*?)```", (CHECKOUT / path).read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)


@pytest.fixture
def _no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep handlers that a document registers out of other tests."""
    monkeypatch.setattr(registry, "_declared", [])


def test_a_paid_invoice_makes_a_contact_and_a_letter() -> None:
    """The event of `firstseen send stripe` becomes one request to each of two APIs."""
    outside = calls(CONTACT | {"stannp POST /letters/create": LETTER})
    assert ends(invoice_paid, PAID, outside) == "done"
    contact, letter = outside.made
    assert contact.json == {"name": "Jenny Rosen", "type": "client"}
    assert letter.step == "thank-you letter"
    assert letter.form == {"recipient[lastname]": "Jenny Rosen", "pages": "Thank you for your payment."}


def test_a_lost_letter_is_sent_again_and_the_contact_is_not() -> None:
    """The second attempt finds the contact in the journal, and repeats the letter under its key."""
    outside = calls(CONTACT | {"stannp POST /letters/create": (httpx.ReadTimeout(""), LETTER)})
    assert ends(invoice_paid, PAID, outside) == "waiting"
    assert ends(invoice_paid, PAID, outside) == "done"
    _, lost, again = outside.made
    assert again.headers["X-Idempotency-Key"] == lost.headers["X-Idempotency-Key"]
    assert again.content == lost.content


def test_an_order_is_passed_on() -> None:
    """The event of `firstseen send shopify` becomes an order at another API."""
    outside = calls({"telness POST /orders": answer(201, json={"orderId": "1"})})
    assert ends(order_created, ORDER, outside) == "done"
    (made,) = outside.made
    assert made.json == {
        "customerId": "115310627314723954",
        "items": [{"product": "IPod Nano - 8GB", "quantity": 1}],
    }


@pytest.mark.usefixtures("_no_handlers")
def test_the_guides_handler_and_its_test() -> None:
    """Both variants that docs/handlers.md shows work as they stand."""
    names: dict[str, Any] = {}
    run_code_of("docs/handlers.md", names)
    names["test_a_lost_letter_is_sent_again_and_the_contact_is_not"]()
    contact = answer(201, json={"data": {"id": "cont_1", "name": "Jenny Rosen"}})
    others = {"stannp POST /letters/create": answer(400, content=b"no"), "telness POST /orders": 201}
    outside = calls({"salesly POST /contacts": contact} | others)
    assert ends(names["invoice_paid"], PAID, outside) == "done"
    assert outside.made[-1].json == {"customerId": "cont_1", "note": "no"}


@pytest.mark.usefixtures("_no_handlers")
@pytest.mark.parametrize(
    ("currency", "is_open", "state"), [("eur", 1, "done"), ("eur", 0, "waiting"), ("x", 1, "dead")]
)
def test_the_readmes_handler(currency: str, *, is_open: int, state: str) -> None:
    """It ends as its comments say."""
    names: dict[str, Any] = {"office_is_open": lambda: is_open}
    run_code_of("README.md", names)
    invoice = {"currency": currency, "customer_name": "Jenny"}
    contact = answer(201, json={"data": {"name": "Jenny"}})
    outside = calls({"salesly POST /contacts": contact, "stannp POST /letters/create": LETTER})
    given = event("stripe", "invoice.paid", data={"data": {"object": invoice}})
    assert ends(names["invoice_paid"], given, outside) == state


@pytest.mark.usefixtures("_no_handlers")
def test_the_documented_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts its secrets, refuses others, and compares in constant time."""
    names: dict[str, Any] = {}
    run_code_of("docs/configuration.md", names)
    compared: list[Any] = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    for headers in ((), (("X-Acme-Token", "other"),)):
        with pytest.raises(InvalidSignature):
            names["acme"](Request("POST", "https://x/", headers, b""), ["old", "new"], 0)
    names["acme"](Request("POST", "https://x/", (("X-Acme-Token", "new"),), b""), ["old", "new"], 0)
    assert len(compared) == 6
