"""The command line's event commands on a real ledger: output, changes and exit codes."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from firstseen.__main__ import cli
from receiver.ledger.control import bulk_progress, discard, plan_bulk
from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports import story
from receiver.ledger.states import Move, State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import change, count, deliver, deliver_all, end, row
from tests.services.processes import clean_environment

Run = Callable[..., Result]
KILLED = """
import os, signal
from firstseen.__main__ import cli
from receiver.ledger.control import bulk

real, left = bulk.BulkStep, [3]

def step(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

bulk.BulkStep = step
cli(["rerun", "--source", "stripe", "--yes"])
"""
"""Dies in its third batch of a hundred, before the commit."""


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command and checks its exit code, in a folder without `.env`."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, expect: int = 0, **env: str) -> Result:
        result = CliRunner().invoke(cli, arguments, env=environ | env)
        assert result.exit_code == expect, f"{arguments} exits {result.exit_code}: {result.output}"
        assert "Traceback (most" not in result.output
        return result

    return invoke


def from_json(result: Result) -> Any:
    """Parse the JSON that a command printed."""
    return json.loads(result.stdout)


def test_events_are_listed_newest_first(store: Store, run: Run) -> None:
    """The output is a table with a header, or the JSON of `/v1`."""
    deliver(store, "evt_1")
    end(store, deliver(store, "evt_2").event, Move.GIVE_UP, reason="It cannot be.")
    lines = run("events").stdout.splitlines()
    assert lines[0].split()[:3] == ["received", "source", "event_id"]
    assert ("evt_2" in lines[1], "dead" in lines[1], "It cannot be." in lines[1]) == (True, True, True)
    assert "evt_1" in lines[2]
    page = from_json(run("events", "--json"))
    assert [event["event_id"] for event in page["data"]] == ["evt_2", "evt_1"]
    assert page["next"] is None


def test_events_are_filtered(store: Store, run: Run) -> None:
    """Source, state, type and time each narrow the list."""
    for number in range(3):
        end(store, deliver(store, f"evt_{number}", type=f"type.{number}").event)
    deliver(store, "evt_9", source="github")
    change(store, deliver(store, "evt_old").event, received_at=row_time(store) - timedelta(minutes=30))

    def listed(*options: str) -> int:
        return len(from_json(run("events", "--json", *options))["data"])

    assert listed("--source", "github") == 1
    assert listed("--state", "done") == 3
    assert listed("--type", "type.1") == 1
    assert listed("--since", "20min") == 4
    assert listed("--until", "20min") == 1
    assert listed("--since", "2020-01-01T00:00:00Z", "--source", "stripe") == 4


def row_time(store: Store) -> Any:
    """Return the ledger's present time."""
    with store.read() as connection:
        return connection.execute(EVENT.select().with_only_columns(store.now()).limit(1)).scalar_one()


def test_pages_follow_the_printed_cursor(store: Store, run: Run) -> None:
    """The printed cursor continues after the last event of the page."""
    deliver_all(store, 5)
    first = from_json(run("events", "--json", "--limit", "3"))
    second = from_json(run("events", "--json", "--limit", "3", "--cursor", first["next"]))
    assert [len(first["data"]), len(second["data"]), second["next"]] == [3, 2, None]
    assert f"--cursor {first['next']}" in run("events", "--limit", "3").stderr
    assert "cursor" in run("events", "--cursor", "nonsense", expect=1).stderr


def test_show_tells_the_whole_story(store: Store, run: Run) -> None:
    """The output has deliveries, attempts, actions and the next step; `--json` prints the timeline."""
    event = deliver(store, body=b"first", address="192.0.2.7").event
    deliver(store, body=b"other", address="192.0.2.8")
    end(store, event, Move.GIVE_UP, reason="All attempts failed.", error="Traceback:\n  boom\x1b[31m")
    run("retry", "stripe", "evt_1", "--who", "ann")
    shown = run("show", "stripe", "evt_1").stdout
    for words in ("192.0.2.7", "192.0.2.8", "1 conflict", "give up", "All attempts failed.", "retry by ann"):
        assert words in shown, shown
    assert "Attempt 1 runs as soon as a worker is free" in shown
    assert "boom\\x1b[31m" in shown, "a sender's control characters reached the terminal"
    assert (
        from_json(run("show", "stripe", "evt_1", "--json"))["event"] == story(store, event).as_json()["event"]
    )


def test_an_unknown_name_gives_one_sentence(store: Store, run: Run) -> None:
    """An unknown event gives exit code 1, one sentence on stderr, and an empty stdout."""
    deliver(store)
    for command in ("show", "retry", "rerun", "discard"):
        result = run(command, "stripe", "evt_9", expect=1)
        assert (result.stdout, result.stderr) == ("", "Error: No event evt_9 of stripe is in the ledger.\n")


def test_one_event_is_acted_on_at_once(store: Store, run: Run) -> None:
    """Actions on a named event need no --yes and print the next step."""
    event = deliver(store).event
    assert "evt_1 is discarded. Nothing" in run("discard", "stripe", "evt_1").stdout
    assert "evt_1 is due again. Attempt 1" in run("retry", "stripe", "evt_1").stdout
    end(store, event)
    assert from_json(run("rerun", "stripe", "evt_1", "--json", "--generation", "0"))["generation"] == 1
    assert [action["what"] for action in story(store, event).as_json()["actions"]] == [
        "rerun",
        "retry",
        "discard",
    ]


def test_a_refused_action_gives_the_reason(store: Store, run: Run) -> None:
    """A refused action gives exit code 1 and the alternative, and changes nothing."""
    event = deliver(store).event
    end(store, event)
    assert "rerun it if every effect" in run("retry", "stripe", "evt_1", expect=1).stderr
    assert "not 7" in run("rerun", "stripe", "evt_1", "--generation", "7", expect=1).stderr
    assert row(store, event).state == "done"


def test_many_are_counted_before_anything_is_done(store: Store, run: Run) -> None:
    """Without --yes the matches of a filter are only counted; with it each is changed once."""
    events = deliver_all(store, 3)
    deliver(store, "evt_x", source="github")
    assert "3 events to discard; nothing is done yet" in run("discard", "--source", "stripe").stdout
    assert from_json(run("discard", "--source", "stripe", "--json"))["total"] == 3
    assert count(store, EVENT.c.state == State.DEAD) == 0
    result = run("discard", "--source", "stripe", "--yes", "--who", "ann")
    assert "discard: 3 of 3 events done." in result.stdout
    assert re.search(r"firstseen discard --resume [0-9a-f-]{36}", result.stderr)
    assert {row(store, event).reason for event in events} == {"Discarded by ann."}
    assert count(store, EVENT.c.state == State.RECEIVED) == 1
    assert from_json(run("discard", "--source", "stripe", "--yes", "--json"))["total"] == 0


def test_a_listed_run_is_resumed_by_its_id(store: Store, run: Run) -> None:
    """A bulk operation resumes by its id, under its own action only."""
    discard(store, deliver(store).event, "bob")
    replay = plan_bulk(store, Move.RETRY, EventFilter(state=State.DEAD), "ann")
    assert (
        f"say firstseen retry --resume {replay.id}"
        in run("rerun", "--resume", str(replay.id), expect=1).stderr
    )
    assert from_json(run("retry", "--resume", str(replay.id), "--json"))["done"] == 1
    assert "1 of 1 event done" in run("retry", "--resume", str(replay.id)).stdout
    assert run("retry", "--resume", "0" * 32, expect=1).stderr.startswith("Error: No bulk run")


def test_a_killed_run_goes_on_where_it_was(store: Store, run: Run, environ: dict[str, str]) -> None:
    """After kill -9, --resume does the rest and nothing twice."""
    deliver_all(store, 350)
    with store.write() as connection:
        connection.execute(update(EVENT).values(state=State.DONE, finished_at=store.now()))
    env = clean_environment(PYTHONPATH=":".join(sys.path), **environ)
    argv = [sys.executable, "-c", KILLED]
    killed = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    bulk = re.search(r"--resume ([0-9a-f-]{36})", killed.stderr)
    assert bulk, killed.stderr
    assert count(store, EVENT.c.generation == 1) == 200
    run("rerun", "--resume", bulk[1])
    assert count(store, EVENT.c.generation == 1) == 350, "an event was left out or done twice"


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["retry", "stripe"],
        ["retry", "stripe", "evt_1", "--state", "dead"],
        ["events", "--state", "asleep"],
        ["events", "--since", "yesterday"],
        ["events", "--since", "2026-11-21T10:00:00"],
        ["rerun", "stripe", "evt_1", "--generation", "-1"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_misuse_exits_2(run: Run, arguments: list[str]) -> None:
    """Invalid arguments give exit code 2."""
    run(*arguments, expect=2)


def test_figures_and_sources_are_listed(store: Store, run: Run) -> None:
    """Statistics count events and rejections; sources show their problems."""
    deliver(store)
    record_rejections(store, [Rejected("stripe", "bad_signature")] * 2)
    assert "2 bad_signature" in run("stats").stdout
    assert from_json(run("stats", "--json"))["data"][0]["accepted"] == 1
    listed = {item["name"]: item for item in from_json(run("sources", "--json"))["data"]}
    assert (listed["stripe"]["secrets"], listed["stripe"]["problem"]) == (1, None)
    assert "NOT_SET" in listed["github"]["problem"]
    assert "/webhooks/github" in run("sources").stdout


def test_prune_does_all_there_is_to_do(store: Store, run: Run) -> None:
    """One call erases every payload past its window; a second erases nothing."""
    event = deliver(store).event
    end(store, event)
    change(store, event, finished_at=row_time(store) - timedelta(days=31))
    assert from_json(run("prune", "--json"))["payloads"] == 1
    assert row(store, event).body is None
    assert from_json(run("prune", "--json"))["payloads"] == 0


def test_escape_sequences_are_printed_escaped(store: Store, run: Run) -> None:
    """Escape sequences in ids, types and reasons are printed escaped."""
    deliver(store, "evt_\x1b]0;x\x07", type="a\rb\u202e")
    shown = run("events").stdout
    assert not set(shown) & {"\x1b", "\x07", "\r", "\u202e"}, shown
    assert "evt_\\x1b]0;x\\x07" in shown


def test_wrong_sources_do_not_prevent_actions(store: Store, run: Run, environ: dict[str, str]) -> None:
    """With a broken sources file events can be retried and counted, but not shown."""
    end(store, deliver(store, "evt_1").event, Move.GIVE_UP)
    Path(environ["FIRSTSEEN_SOURCES"]).write_text("[stripe]\ncolour = 1\n")
    assert "evt_1 is due again." in run("retry", "stripe", "evt_1").stdout
    assert run("retry", "--state", "waiting").stdout.startswith("1 event to retry")
    run("show", "stripe", "evt_1", expect=2)


def test_progress_stands_in_the_ledger(store: Store, run: Run) -> None:
    """A finished bulk operation has its end in the ledger."""
    deliver(store)
    replay = plan_bulk(store, Move.DISCARD, EventFilter(), "ann")
    run("discard", "--resume", str(replay.id))
    assert bulk_progress(store, replay.id).as_json()["finished_at"] is not None


def test_redacted_values_are_not_printed(run: Run, store: Store, environ: dict[str, str]) -> None:
    """Redacted values are neither in the list nor in the timeline."""
    event = deliver(store, "evt_1", body=b'{"email": "ada@example.com"}').event
    end(store, event, Move.GIVE_UP, reason="No customer ada@example.com.", error="KeyError: ada@example.com")
    commands = [
        [*item, *form] for item in (["events"], ["show", "stripe", "evt_1"]) for form in ([], ["--json"])
    ]
    for command in commands:
        assert "ada@example.com" in run(*command).stdout
    sources = Path(environ["FIRSTSEEN_SOURCES"])
    sources.write_text(sources.read_text().replace("[github]", 'redact = ["$.email"]\n\n[github]'))
    for command in commands:
        printed = run(*command).stdout
        assert "ada@example.com" not in printed
        assert "[redacted]" in printed
