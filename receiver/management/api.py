"""`/v1`, put together: gate, idempotency engine, views, document and page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from flask import Blueprint, Response, jsonify, make_response, request

from config.credentials import ApiKey
from config.dialects import load_dialects
from config.sources import Source
from receiver.idempotency import Engine, policy_of
from receiver.ledger import LedgerError, Store
from receiver.management.calls import Calls
from receiver.management.events import Events
from receiver.management.gate import admit, credential
from receiver.management.nudging import Nudge
from receiver.management.openapi import document
from receiver.management.operations import PREFIX, Operation
from receiver.management.page import render_page
from receiver.management.reading import read
from receiver.management.refusals import answer_ledger_error, answer_refusal
from receiver.management.replays import Replays
from receiver.management.reports import Reports
from receiver.problems import Problem

BODY_MAX = 64 * 1024
"""Bytes; the longest sensible request here is a filter of a few hundred."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Parts:
    """What the API stands on. `nudge` takes event ids and never waits."""

    store: Store
    keys: Sequence[ApiKey]
    sources: Mapping[str, Source]
    nudge: Nudge


def api_views(parts: Parts) -> Blueprint:
    """Return the routes of `/v1`; without a key, one that says that the API is off."""
    views = Blueprint("management", __name__, url_prefix=PREFIX, template_folder="templates")
    if not parts.keys:
        for rule in ("/", "/<path:rest>"):
            views.add_url_rule(rule, "off", _off, methods=METHODS)
        return views
    operations = list_operations(parts)
    engine = _engine(parts.store)
    for operation in operations:
        served = partial(_serve, operation)
        view = partial(_admit, parts.keys, engine.guard(served) if operation.acts else served)
        methods = [operation.method]
        views.add_url_rule(
            operation.rule, operation.name, view, methods=methods, provide_automatic_options=False
        )
    views.register_error_handler(LedgerError, answer_ledger_error)
    _add_documents(views, document(operations))
    return views


def list_operations(parts: Parts) -> list[Operation]:
    """Return every endpoint."""
    store, nudge = parts.store, parts.nudge
    sources = parts.sources
    acting = Events(store, nudge, sources), Calls(store, nudge, sources), Replays(store)
    groups = *acting, Reports(store, sources)
    return [operation for group in groups for operation in group.operations()]


def _engine(store: Store) -> Engine:
    policy = policy_of("firstseen", load_dialects()["firstseen"])
    scopes = {"credential": lambda _: credential()}
    return Engine(store, policy, scopes=scopes, refuse=answer_refusal, body_max=BODY_MAX)


def _admit(keys: Sequence[ApiKey], view: Callable[..., Any], **path: str) -> Any:
    admit(keys)
    return view(**path)


def _serve(operation: Operation, **path: str) -> Response:
    return make_response(operation.view(**read(operation, path, request)))


def _add_documents(views: Blueprint, described: dict[str, Any]) -> None:
    """Add the document and the page: the same for everybody, so neither asks for a key."""
    views.add_url_rule("/openapi.json", "openapi", lambda: jsonify(described))
    views.add_url_rule("/docs", "docs", lambda: render_page(described))


def _off(**_: str) -> NoReturn:
    raise Problem(
        404, "api-off", "The API is off: set FIRSTSEEN_API_KEYS, such as `ops=<key>`, to turn it on."
    )
