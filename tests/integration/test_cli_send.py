"""`send`: signed samples against a running web process."""

import json
from pathlib import Path

import pytest

from config.providers import load_providers
from config.secrets import generate_secret
from config.settings import Settings
from config.sources import load_sources
from tests.conftest import Deploy
from tests.services.databases import NO_BROKER, Databases
from tests.services.deployment import Deployment
from tests.services.waiting import free_port

SHIPPED = Path(Settings.model_fields["sources_path"].default)


@pytest.fixture
def web(deploy: Deploy, databases: Databases) -> Deployment:
    """Run web with the shipped sources, each with a secret of its own, and without a broker."""
    secrets = {
        name: generate_secret(source.provider)
        for source in load_sources(SHIPPED, load_providers(), {}).values()
        for name in source.secret_names
    }
    found = deploy(databases.migrated("sqlite"), NO_BROKER, sources=SHIPPED.read_text(), env=secrets)
    found.start_web()
    found.env["PORT"] = found.url.rpartition(":")[2]
    return found


def test_every_shipped_source_takes_its_sample(web: Deployment) -> None:
    """Each sample is accepted as first seen, the same one again as a duplicate; PORT says where web is."""
    for source in load_sources(SHIPPED, load_providers(), {}):
        answers = json.loads(web.firstseen(f"send {source} --times 3 --json"))["data"]
        assert [answer["duplicate"] for answer in answers] == [False, True, True], (source, answers)
        assert {answer["status"] for answer in answers} == {200}
        event_id = answers[0]["event_id"]
        assert json.loads(web.firstseen(f"show {source} '{event_id}' --json"))["duplicates"]["count"] == 2


def test_id_type_and_bytes_can_be_chosen(web: Deployment) -> None:
    """The ledger holds what was asked for; a file goes out byte for byte."""
    printed = web.firstseen("send stripe --id evt_mine --type charge.refunded --times 2")
    assert "first seen  evt_mine" in printed
    assert "duplicate   evt_mine" in printed
    event = json.loads(web.firstseen("show stripe evt_mine --json"))["event"]
    assert (event["type"], event["duplicates"], event["conflicts"]) == ("charge.refunded", 1, 0)
    body = b'{ "id":"evt_file",  "type": "invoice.paid" }\n'
    (web.cwd / "body.json").write_bytes(body)
    web.firstseen("send stripe --file body.json")
    assert json.loads(web.firstseen("show stripe evt_file --json"))["event"]["size"] == len(body)


def test_a_refusal_exits_1_and_says_why(web: Deployment) -> None:
    """A wrong secret, an unknown source, and a web process that is not there."""
    refused = web.run("python -m firstseen send stripe", expect=1, STRIPE_WEBHOOK_SECRETS="whsec_another")
    assert "401  refused" in refused
    assert "There is no source 'nobody'" in web.firstseen("send nobody", expect=1)
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert f"No answer from {nowhere}" in web.firstseen(f"send stripe --url {nowhere}", expect=1)
    web.firstseen("send stripe --url localhost", expect=2)
    assert "has no secret" in web.run("python -m firstseen send stripe", expect=1, STRIPE_WEBHOOK_SECRETS="")
