"""Flask with DBOS as its documentation shows it: verify, then start a workflow with the event's id."""

import os

import stripe
from dbos import DBOS, DBOSConfig, SetWorkflowID
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue


def application() -> Flask:
    """Build the application."""
    app = Flask(__name__)
    config: DBOSConfig = {"name": "bench", "system_database_url": os.environ["BENCH_DATABASE"]}
    DBOS(config=config)

    @DBOS.workflow()
    def handle(event_id: str) -> None: ...

    @app.post("/webhooks/stripe")
    def receive() -> ResponseReturnValue:
        payload, secret = request.get_data(), os.environ["BENCH_SECRET"]
        event = stripe.Webhook.construct_event(payload, request.headers["Stripe-Signature"], secret)
        with SetWorkflowID(event["id"]):
            DBOS.start_workflow(handle, event["id"])
        return jsonify(status="accepted")

    DBOS.launch()
    return app
