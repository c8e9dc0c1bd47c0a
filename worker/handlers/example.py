"""Examples to replace: two handlers that call the sandbox, which `make run` starts."""

from worker import Calls, Event, handles


@handles("stripe", "invoice.paid")
def invoice_paid(event: Event, calls: Calls) -> None:
    """Make the customer of a paid invoice a contact, and thank them by letter. Each happens once."""
    name = event.data["data"]["object"]["customer_name"]
    calls.salesly.post("/contacts", json={"name": name, "type": "client"})
    letter = {"recipient[lastname]": name, "pages": "Thank you for your payment."}
    calls.stannp.post("/letters/create", data=letter, step="thank-you letter")


@handles("shopify", "orders/create")
def order_created(event: Event, calls: Calls) -> None:
    """Pass an order on, once for each order number, however many events are about it."""
    order = event.data
    items = [{"product": item["title"], "quantity": item["quantity"]} for item in order["line_items"]]
    wanted = {"customerId": str(order["customer"]["id"]), "items": items}
    calls.telness.post("/orders", json=wanted, once=f"shopify order {order['id']}")
