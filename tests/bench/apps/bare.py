"""A bare Flask view that reads the body and responds: the upper bound for any application on Flask."""

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue


def application() -> Flask:
    """Build the application."""
    app = Flask(__name__)

    @app.post("/webhooks/stripe")
    def receive() -> ResponseReturnValue:
        request.get_data()
        return jsonify(status="accepted")

    return app
