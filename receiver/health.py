"""`/healthz`: the process lives. `/readyz`: the ledger answers and has the right schema."""

from flask import Blueprint, Response, jsonify

from receiver.dispatch import Dispatcher
from receiver.ledger.errors import LedgerError
from receiver.ledger.schema import check_schema
from receiver.ledger.store import Store


def health_views(store: Store, dispatcher: Dispatcher) -> Blueprint:
    """Build the two views. The broker is reported and fails nothing: without it events wait in the ledger."""
    views = Blueprint("health", __name__)

    @views.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @views.get("/readyz")
    def readyz() -> tuple[Response, int]:
        try:
            check_schema(store)
        except LedgerError as error:
            return jsonify(status="unavailable", ledger=str(error), broker=dispatcher.state), 503
        return jsonify(status="ok", ledger="ok", broker=dispatcher.state), 200

    return views
