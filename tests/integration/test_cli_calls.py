"""The command line's call commands: lists, the timeline of an event's calls, and resolutions."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from firstseen.__main__ import cli
from receiver.ledger.calls import StoredResponse
from receiver.ledger.lease import Outcome as End
from receiver.ledger.queue import settle
from receiver.ledger.states import Move, SendOutcome
from receiver.ledger.store import Store
from tests.integration.call_steps import answered, call_row, change_call, planned, with_parked_call
from tests.integration.steps import deliver, later, state, take

Run = Callable[..., Result]
NOBODY = "0199c0de-0000-7000-8000-000000000000"


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command on the test's ledger and checks its exit code."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, expect: int = 0) -> Result:
        result = CliRunner().invoke(cli, arguments, env=environ)
        assert result.exit_code == expect, f"{arguments} exits {result.exit_code}: {result.output}"
        assert "Traceback (most" not in result.output
        return result

    return invoke


def test_calls_are_listed_and_filtered(store: Store, run: Run) -> None:
    """The table has a header and a line for each call; stderr names the next page."""
    _, parked = with_parked_call(store)
    held = take(store, deliver(store, "evt_2", source="github").event)
    answered(store, held, planned(store, held, "contact", api="salesly").id, SendOutcome.SUCCEEDED)
    lines = run("calls").stdout.splitlines()
    assert lines[0].split() == ["created", "id", "api", "step", "state", "source", "event_id", "reason"]
    assert lines[1].split()[2:7] == ["salesly", "contact", "succeeded", "github", "evt_2"]
    assert str(parked) in lines[2]
    for options in (["--state", "parked"], ["--api", "stannp"], ["--source", "stripe"], ["--event", "evt_1"]):
        found = json.loads(run("calls", "--json", *options).stdout)["data"]
        assert [item["id"] for item in found] == [str(parked)], options
    cursor = json.loads(run("calls", "--json", "--limit", "1").stdout)["next"]
    assert f"--cursor {cursor}" in run("calls", "--limit", "1").stderr


def test_the_list_of_calls_is_redacted(
    store: Store, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that quotes a redacted value is redacted."""
    held = take(store, deliver(store, body=b'{"email": "ada@example.com"}').event)
    planned(store, held, "mail ada@example.com")
    assert "ada@example.com" in run("calls").stdout
    written = '[stripe]\nprovider = "stripe"\nsecrets_env = "S"\nredact = ["$.email"]\n'
    (tmp_path / "sources.toml").write_text(written)
    monkeypatch.setenv("FIRSTSEEN_SOURCES", str(tmp_path / "sources.toml"))
    for options in ([], ["--json"]):
        assert "mail [redacted]" in run("calls", *options).stdout


def test_show_prints_the_whole_chain(store: Store, run: Run) -> None:
    """The output has event, attempts, calls, keys, sends, responses and possible resolutions."""
    event = deliver(store).event
    held = take(store, event)
    answered(store, held, planned(store, held, "contact", api="salesly").id, SendOutcome.SUCCEEDED)
    call = planned(store, held, "letter", 1).id
    answered(store, held, call, SendOutcome.UNKNOWN, 0, open=True, park=True)
    settle(store, [(held, End(Move.FINISH))])
    shown = run("show", "stripe", "evt_1").stdout
    for words in (
        f"firstseen call resolve {call} --happened",
        "0.1  contact  salesly  succeeded",
        "key      key-contact-0, until 20",
        "answer   201, 8 bytes application/json",
        "attempt 0.1  succeeded: It was succeeded.",
        "0.2  letter  stannp  parked",
        "request  POST http://api.test/letters",
        "attempt 0.1  unknown, open: It was unknown.",
    ):
        assert words in shown, f"{words!r} is not in {shown}"
    assert "due " not in shown
    change_call(store, call, due_at=datetime.now(UTC))
    assert "due " not in run("show", "stripe", "evt_1").stdout, "a parked call is not due"
    positions = [shown.index(word) for word in ("state", "attempts", "calls", "contact", "letter  stannp")]
    assert positions == sorted(positions)
    change_call(store, call, step="a\x1b[31m", reason="b\x07", url="http://c\x1b")
    assert not set(run("show", "stripe", "evt_1").stdout) & {"\x1b", "\x07"}


def test_one_call_is_shown(store: Store, run: Run) -> None:
    """The output has request, response and actions; long and binary bodies are shortened."""
    _, call = with_parked_call(store)
    shown = run("call", "show", str(call)).stdout
    assert ("event       stripe evt_1, parked" in shown, '  {"to":"Ann"}' in shown) == (True, True), shown
    run("call", "resolve", str(call), "--happened", "--who", "ann")
    change_call(store, call, body=b"\xff", answer="\n".join(map(str, range(50))).encode())
    shown = run("call", "show", str(call)).stdout
    for words in ("body sent   1 byte, no text", "  39\n  ... and 10 lines more", "happened by ann"):
        assert words in shown, shown


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("answer.json", b'{"id": 7}', "application/json"),
        ("answer", b'{"id": 7}', "application/json"),
        ("answer.txt", b"[1]", "application/json"),
        ("answer.txt", b"done", "text/plain"),
        ("answer.xml", b"<a/>", "application/xml"),
        ("answer", b"\xff\x00", "application/octet-stream"),
    ],
)
def test_happened_is_resolved_with_a_file(store: Store, run: Run, name: str, body: bytes, kind: str) -> None:
    """The file's bytes become the response; their type comes from its name or content."""
    event, call = with_parked_call(store)
    Path(name).write_bytes(body)
    output = run("call", "resolve", str(call), "--happened", "--response", name, "--status", "201").stdout
    assert output.startswith("Call letter: It happened, says ")
    assert "Event evt_1 is waiting now." in output
    found = planned(store, take(store, event))
    assert found.state == "succeeded"
    assert found.response == StoredResponse(201, (("content-type", kind),), body)


@pytest.mark.parametrize("how", ["--resend-as-new", "--use-stored", "--give-up", "--happened"])
def test_each_resolution_has_a_name_in_the_audit(store: Store, run: Run, how: str) -> None:
    """The resolution is in the audit under the name; a second one gives exit code 1."""
    event, call = with_parked_call(store)
    change_call(store, call, changed_to="e" * 64)
    later(store, minutes=2)
    change_call(store, call, quiet_until=None)
    output = json.loads(run("call", "resolve", str(call), how, "--who", "ann", "--json").stdout)
    assert (output["actions"][0]["what"], output["actions"][0]["who"]) == (how.removeprefix("--"), "ann")
    assert state(store, event) == ("dead" if how == "--give-up" else "waiting")
    refused = run("call", "resolve", str(call), "--give-up", expect=1)
    assert (refused.stdout, refused.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "Give exactly one of --happened, --resend-as-new, --use-stored, --give-up."),
        (["--happened", "--give-up"], 2, "Give exactly one of"),
        (["--give-up", "--response", "x"], 2, "--response and --status go with --happened."),
        (["--resend-as-new", "--status", "201"], 2, "--response and --status go with --happened."),
        (["--happened", "--status", "404"], 2, "--status"),
        (["--happened", "--response", "no.json"], 1, "no.json cannot be read (No such file or directory)."),
        (["--happened", "--response", "."], 1, ". cannot be read"),
        (["--happened", "--response", "big"], 1, "big has 1048577 bytes, and 1048576 are kept at most."),
        (["--resend-as-new"], 1, "may still be under way there; resend it as new after 20"),
        (["--use-stored"], 1, "was never asked for with other bytes"),
    ],
)
def test_an_impossible_resolution_is_refused(
    store: Store, run: Run, options: list[str], code: int, words: str
) -> None:
    """Misuse gives exit code 2, a refusal of the ledger 1; the call stays parked."""
    _, call = with_parked_call(store)
    Path("big").write_bytes(b"x" * (1024 * 1024 + 1))
    assert words in run("call", "resolve", str(call), *options, expect=code).stderr
    assert call_row(store, call).state == "parked"


@pytest.mark.parametrize("arguments", [["show", NOBODY], ["resolve", NOBODY, "--give-up"]], ids=" ".join)
def test_an_unknown_call_is_named(run: Run, arguments: list[str]) -> None:
    """An unknown id gives one sentence on stderr and an empty stdout; a malformed one is misuse."""
    result: Any = run("call", *arguments, expect=1)
    assert (result.stdout, result.stderr) == ("", f"Error: No call {NOBODY} is in the ledger.\n")
    run("call", arguments[0], "letter", *arguments[2:], expect=2)


def test_figures_have_a_table_of_apis(store: Store, run: Run) -> None:
    """Calls are counted by API and state."""
    with_parked_call(store)
    lines = run("stats").stdout.splitlines()
    assert lines[-1].split() == ["stannp", "1", "0", "0", "0", "1", "0", "0", "1", "unknown"]
