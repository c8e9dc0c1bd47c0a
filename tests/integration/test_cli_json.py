"""The command line's `--json` prints what `/v1` answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.providers import load_providers
from config.sources import load_sources
from firstseen.__main__ import cli
from receiver.ledger.control import Resolution
from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.reports import models as shapes
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.call_steps import change_call, with_parked_call
from tests.integration.steps import deliver, end
from tests.services.api import Api

Run = Callable[..., Any]


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command with `--json` and returns the parsed output."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Any:
        result = CliRunner().invoke(cli, [*arguments, "--json"], env=environ)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return invoke


@pytest.fixture
def api(store: Store, environ: dict[str, str]) -> Api:
    """Serve the API on the same ledger and sources."""
    path = Path(environ["FIRSTSEEN_SOURCES"])
    return Api(store, sources=load_sources(path, load_providers(), environ))


def test_lists_are_the_same(api: Api, store: Store, run: Run) -> None:
    """Pages, cursors and filters are equal."""
    for number in range(5):
        deliver(store, f"evt_{number}")
    first = run("events", "--limit", "2")
    assert first == api.get("/v1/events", limit=2).json
    assert run("events", "--cursor", first["next"]) == api.get("/v1/events", cursor=first["next"]).json
    assert run("events", "--state", "dead") == api.get("/v1/events", state="dead").json


def test_stories_are_the_same(api: Api, store: Store, run: Run) -> None:
    """The timelines of one event are equal."""
    event = deliver(store).event
    deliver(store, body=b"other")
    end(store, event, Move.PARK, reason="Somebody must look.")
    assert run("show", "stripe", "evt_1") == api.get(f"/v1/events/{event}").json


def test_sources_and_figures_are_the_same(api: Api, store: Store, run: Run) -> None:
    """The lists of sources and the statistics are equal."""
    event = deliver(store).event
    end(store, event)
    record_rejections(store, [Rejected("github", "no_secret")])
    assert run("sources") == api.get("/v1/sources").json
    assert run("stats") == api.get("/v1/stats").json


@pytest.mark.parametrize("what", ["retry", "rerun", "discard"])
def test_actions_answer_alike(api: Api, store: Store, run: Run, what: str) -> None:
    """Both return the event as it is now; only its own ids and times differ."""
    one, two = (deliver(store, name).event for name in ("evt_1", "evt_2"))
    for event in (one, two):
        end(store, event, Move.PARK)
    printed = run(what, "stripe", "evt_1", "--who", "api:ops")
    answered = api.post(f"/v1/events/{two}/{what}", {"generation": 0}).json
    own = {"id", "event_id", "received_at", "due_at", "finished_at"}
    assert {name: printed[name] for name in printed.keys() - own} == {
        name: answered[name] for name in answered.keys() - own
    }


def test_calls_are_the_same(api: Api, store: Store, run: Run) -> None:
    """Lists with filters and one call's timeline are equal."""
    event, call = with_parked_call(store)
    with_parked_call(store, "evt_2", api="salesly")
    first = run("calls", "--limit", "1")
    assert first == api.get("/v1/calls", limit=1).json
    assert run("calls", "--cursor", first["next"]) == api.get("/v1/calls", cursor=first["next"]).json
    assert run("calls", "--state", "parked", "--api", "stannp", "--source", "stripe", "--event", "evt_1") == (
        api.get("/v1/calls", state="parked", api="stannp", event=event).json
    )
    assert run("call", "show", str(call)) == api.get(f"/v1/calls/{call}").json
    assert run("show", "stripe", "evt_1") == api.get(f"/v1/events/{event}").json
    assert run("stats") == api.get("/v1/stats").json


@pytest.mark.parametrize("how", [one for one in Resolution if one != Resolution.USE_STORED])
def test_resolutions_answer_alike(api: Api, store: Store, run: Run, how: str) -> None:
    """Both return the call as it is now; only its own ids and times differ."""
    (_, one), (_, two) = (with_parked_call(store, name) for name in ("evt_1", "evt_2"))
    for call in (one, two):
        change_call(store, call, quiet_until=None)
    printed = run("call", "resolve", str(one), f"--{how}", "--who", "api:ops")
    answered = api.post(f"/v1/calls/{two}/resolve", {"how": how}).json
    assert printed["call"]["state"] == answered["call"]["state"] != "parked"
    for name in ("reason", "status", "key", "successor", "changed_to"):
        assert printed["call"][name] == answered["call"][name]
    assert printed["event"]["state"] == answered["event"]["state"]
    assert (printed["next"], printed["answer"]) == (answered["next"], answered["answer"])
    what = [
        [(act["what"], act["who"], act["was"]) for act in output["actions"]] for output in (printed, answered)
    ]
    assert what == [[(how, "api:ops", "parked")]] * 2


def test_counts_and_bulk_runs_are_the_same(api: Api, store: Store, run: Run) -> None:
    """The count before and the progress afterwards are equal."""
    for number in range(3):
        end(store, deliver(store, f"evt_{number}").event, Move.PARK)
    body = {"what": "retry", "filter": {"state": "parked", "source": "stripe"}}
    given = ("retry", "--state", "parked", "--source", "stripe")
    assert run(*given) == api.post("/v1/replays", {**body, "dry_run": True}).json
    ran = run(*given, "--yes")
    assert ran == api.get(f"/v1/replays/{ran['id']}").json
    assert shapes.Progress.model_validate(ran).done == 3


def test_sources_are_shown_without_their_secrets(api: Api) -> None:
    """A source shows the number of its secrets and its problem, and no secret."""
    output = api.get("/v1/sources")
    stripe, github = output.json["data"]
    assert "whsec_tests" not in output.text
    assert (stripe["name"], stripe["path"], stripe["secrets"]) == ("stripe", "/webhooks/stripe", 1)
    assert (github["secrets"], "NOT_SET" in github["problem"]) == (0, True)
