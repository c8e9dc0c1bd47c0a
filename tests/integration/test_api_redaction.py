"""Redacted values are in no response of `/v1`; the stored payload stays exact."""

from dataclasses import replace
from urllib.parse import quote

import pytest
from sqlalchemy import update

from config.providers import load_providers
from config.sources import SOURCES, load_sources, parse_json_path
from receiver.ledger.reports import original
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL
from tests.integration.steps import ONLY_SQLITE, change, end
from tests.services.api import Api
from tests.services.stage import EMAIL, Stage, body_of, deliver

pytestmark = pytest.mark.parametrize(**ONLY_SQLITE)


def api(store: Store, *paths: str) -> Api:
    """Return the API of one Stripe source that redacts these JSON paths."""
    source = load_sources(SOURCES, load_providers(), {})["stripe"]
    return Api(store, sources={"stripe": replace(source, redact=tuple(map(parse_json_path, paths)))})


def test_no_response_has_a_redacted_value(store: Store, stage: Stage) -> None:
    """Redaction covers timelines, lists, conflicting bodies and calls."""
    quoted = deliver(store, "evt_quoted")
    end(store, quoted, Move.GIVE_UP, reason=f"No customer {EMAIL}.", error=f"KeyError: {EMAIL}")
    shown, hidden = api(store), api(store, "$.data.object.email")
    paths = [
        "/v1/events",
        f"/v1/events/{quoted}",
        f"/v1/events/{stage.done}/conflicts",
        f"/v1/calls/{stage.call}",
    ]
    for path in paths:
        assert EMAIL in shown.get(path).text, f"{path} lacks the value, so this proves nothing"
        assert EMAIL not in hidden.get(path).text, path
        assert "[redacted]" in hidden.get(path).text, path
    assert original(store, quoted).body == body_of("evt_quoted")


def test_no_list_of_calls_has_a_redacted_value(store: Store, stage: Stage) -> None:
    """Redaction covers the escaped value in a call's URL, too."""
    with store.write() as connection:
        mine = update(CALL).where(CALL.c.id == stage.call)
        connection.execute(mine.values(url=f"http://127.0.0.1/{quote(EMAIL)}", step=f"mail {EMAIL}"))
    shown, hidden = api(store), api(store, "$.data.object.email")
    for path in ("/v1/calls", f"/v1/calls/{stage.call}", f"/v1/events/{stage.done}"):
        assert quote(EMAIL) in shown.get(path).text, f"{path} lacks the value, so this proves nothing"
        answer = hidden.get(path).text
        assert (quote(EMAIL) in answer, EMAIL in answer, "[redacted]" in answer) == (False, False, True), path


def test_redaction_outlives_the_payload(store: Store, stage: Stage) -> None:
    """Without the payload the values are unknown, so every text that may quote them is redacted whole."""
    quoted = deliver(store, "evt_quoted")
    end(store, quoted, Move.GIVE_UP, reason=f"No customer {EMAIL}.")
    change(store, quoted, body=None, headers=None)
    change(store, stage.done, body=None, headers=None)
    with store.write() as connection:
        connection.execute(update(CALL).where(CALL.c.id == stage.call).values(step=f"mail {EMAIL}"))
    shown, hidden = api(store), api(store, "$.data.object.email")
    for path in ("/v1/events", f"/v1/events/{quoted}", f"/v1/calls/{stage.call}", "/v1/calls"):
        assert EMAIL in shown.get(path).text, f"{path} lacks the value, so this proves nothing"
        assert EMAIL not in hidden.get(path).text, path
    answer = hidden.get(f"/v1/events/{quoted}").json
    assert answer["event"]["state"] == "dead"
    assert answer["next"].startswith("Nothing by itself. [redacted]")


def test_other_values_are_shown(store: Store, stage: Stage) -> None:
    """A redacted conflicting body is still JSON with all other values."""
    (one,) = api(store, "$.data.object.email").get(f"/v1/events/{stage.done}/conflicts").json["data"]
    assert '"amount_paid": 4300' in one["body"]
    assert one["size"] == len(body_of("evt_1Qx7done", amount_paid=4300)), "the size is the delivered body's"
