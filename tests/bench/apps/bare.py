"""A bare Flask view that reads the body and answers: the limit for every application on Flask."""

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue


def application() -> Flask:
    """Build it."""
    app = Flask(__name__)

    @app.post("/webhooks/stripe")
    def receive() -> ResponseReturnValue:
        request.get_data()
        return jsonify(status="accepted")

    return app
