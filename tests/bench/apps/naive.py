"""A receiver written in an afternoon: verify, look up, insert, commit, enqueue."""

import os
from datetime import UTC, datetime

import stripe
from celery import Celery
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from sqlmodel import Field, Session, SQLModel, create_engine, select


class Received(SQLModel, table=True):
    """One received event."""

    id: int | None = Field(default=None, primary_key=True)
    event_id: str = Field(unique=True)
    payload: str
    at: datetime


def application() -> Flask:
    """Build the application."""
    engine = create_engine(os.environ["BENCH_DATABASE"], pool_size=16)
    SQLModel.metadata.create_all(engine)
    app, celery = Flask(__name__), Celery("naive", broker=os.environ["BENCH_BROKER"])

    @celery.task(name="naive.handle")
    def handle(event_id: str) -> None: ...

    @app.post("/webhooks/stripe")
    def receive() -> ResponseReturnValue:
        payload, secret = request.get_data(), os.environ["BENCH_SECRET"]
        event = stripe.Webhook.construct_event(payload, request.headers["Stripe-Signature"], secret)
        with Session(engine) as session:
            known = session.exec(select(Received).where(Received.event_id == event["id"])).first()
            if known is None:
                row = Received(event_id=event["id"], payload=payload.decode(), at=datetime.now(UTC))
                session.add(row)
                session.commit()
                handle.delay(event["id"])
        return jsonify(status="accepted")

    return app
