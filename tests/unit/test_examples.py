"""The shipped handlers, tested as users test theirs."""

import json

import httpx

from firstseen.samples import PAYLOADS
from worker.handlers.example import invoice_paid, order_created
from worker.testing import answer, calls, ends, event

SAMPLES = json.loads(PAYLOADS.read_text(encoding="utf-8"))
PAID = event("stripe", "invoice.paid", data=SAMPLES["stripe"]["payloads"]["invoice.paid"])
ORDER = event("shopify", "orders/create", data=SAMPLES["shopify"]["payloads"]["orders/create"])
CONTACT = {"salesly POST /contacts": answer(201, json={"data": {"id": "cont_1"}})}
LETTER = {"success": True, "data": {"id": "1"}}


def test_a_paid_invoice_makes_a_contact_and_a_letter() -> None:
    """What `firstseen send stripe` delivers becomes one request to each of two APIs."""
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
    """What `firstseen send shopify` delivers becomes an order elsewhere."""
    outside = calls({"telness POST /orders": answer(201, json={"orderId": "1"})})
    assert ends(order_created, ORDER, outside) == "done"
    (made,) = outside.made
    assert made.json == {
        "customerId": "115310627314723954",
        "items": [{"product": "IPod Nano - 8GB", "quantity": 1}],
    }
