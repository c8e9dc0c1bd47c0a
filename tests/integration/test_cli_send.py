"""`send`: signed samples to a running web process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.providers import generate_secret, load_providers
from config.settings import Settings
from config.sources import load_sources
from firstseen.__main__ import cli
from tests.services.databases import NO_BROKER, Databases
from tests.services.deployment import Deployment
from tests.services.waiting import free_port

SHIPPED = Path(Settings.model_fields["sources_path"].default)
Run = Callable[..., str]


@pytest.fixture(scope="module")
def web(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run web with the shipped sources, each with its own secret, and without a broker."""
    secrets = {
        name: generate_secret(source.provider)
        for source in load_sources(SHIPPED, load_providers(), {}).values()
        for name in source.secret_names
    }
    url, folder = databases.migrated("sqlite"), tmp_path_factory.mktemp("send")
    found = Deployment(folder, url, NO_BROKER, sources=SHIPPED.read_text(), env=secrets)
    try:
        found.start_web()
        found.env["PORT"] = found.url.rpartition(":")[2]
        yield found
    finally:
        found.stop()


@pytest.fixture
def run(web: Deployment, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command in the deployment's environment and returns its output."""
    monkeypatch.chdir(web.cwd)

    def invoke(*arguments: str, expect: int = 0, **env: str) -> str:
        result = CliRunner().invoke(cli, arguments, env=web.env | env)
        assert result.exit_code == expect, f"{arguments} exits {result.exit_code}: {result.output}"
        return result.output

    return invoke


def event(run: Run, source: str, event_id: str) -> Any:
    """Return the ledger's report of an event."""
    return json.loads(run("show", source, event_id, "--json"))["event"]


@pytest.mark.parametrize("source", load_sources(SHIPPED, load_providers(), {}))
def test_every_shipped_source_takes_its_sample(run: Run, source: str) -> None:
    """Each sample is first seen once and then a duplicate; PORT is the default address."""
    answers = json.loads(run("send", source, "--times", "3", "--json"))["data"]
    assert [answer["duplicate"] for answer in answers] == [False, True, True], answers
    assert {answer["status"] for answer in answers} == {200}
    found = event(run, source, answers[0]["event_id"])
    assert (found["state"], found["duplicates"], found["conflicts"]) == ("received", 2, 0)
    assert found["id"] == answers[0]["answer"]["id"]


def test_id_and_type_can_be_chosen(run: Run) -> None:
    """The ledger has the chosen id and type, and each response is a line."""
    lines = run(
        "send", "stripe", "--id", "evt_mine", "--type", "charge.refunded", "--times", "2"
    ).splitlines()
    assert [line.split()[:3] for line in lines] == [["1", "200", "first"], ["2", "200", "duplicate"]]
    assert event(run, "stripe", "evt_mine")["type"] == "charge.refunded"


def test_a_file_goes_out_byte_for_byte(run: Run, web: Deployment) -> None:
    """The file's own id and type are used, and its whitespace is kept."""
    body = b'{ "id":"evt_file",  "type": "invoice.paid" }\n'
    (web.cwd / "body.json").write_bytes(body)
    run("send", "stripe", "--file", "body.json")
    assert event(run, "stripe", "evt_file")["size"] == len(body)


def test_a_wrong_secret_is_refused(run: Run) -> None:
    """The output has the response's status and sentence, and the exit code is 1."""
    refused = run("send", "stripe", expect=1, STRIPE_WEBHOOK_SECRETS="whsec_another")
    assert refused.split()[:3] == ["1", "401", "refused"]
    assert "has no secret" in run("send", "stripe", expect=1, STRIPE_WEBHOOK_SECRETS="")


def test_an_unknown_name_gives_one_sentence(run: Run) -> None:
    """An unknown source and an unreachable address give exit code 1; a malformed address gives 2."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert "There is no source 'nobody'" in run("send", "nobody", expect=1)
    assert f"No answer from {nowhere}" in run("send", "stripe", "--url", nowhere, expect=1)
    run("send", "stripe", "--url", "localhost", expect=2)
