"""The sandbox's real answers to the shipped APIs' credentials mean what the client takes them for."""

from datetime import UTC, datetime

import httpx
import pytest

from config.apis import APIS, Api, header_of, load_apis
from config.dialects import load_dialects
from firstseen.dev import sandbox_credentials
from receiver.ledger.calls import SendContext
from tests.services.sandbox import CLIENTS, KEY, Client, Sandbox
from worker.calls.classify import classify, protection
from worker.calls.transport import Reply

OTHER = {
    "celper": "mismatch",
    "chronapilot": "mismatch",
    "salesly": "replayed",
    "stannp": "succeeded",
    "telness": "mismatch",
}
"""What another body under a used key gets: nobody but we ourselves would notice it at Salesly."""

every_api = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture
def api(client: Client, monkeypatch: pytest.MonkeyPatch) -> Api:
    """Give the shipped API, with the credential that `make run` makes up."""
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    monkeypatch.delenv("FIRSTSEEN_APIS", raising=False)
    return load_apis(APIS, load_dialects(), sandbox_credentials())[client.name]


def post(api: Api, client: Client, sandbox: Sandbox, *, n: int = 1, again: bool = False) -> str:
    """Create something as the client would; return the outcome."""
    name, value = header_of(api)
    base = httpx.URL(api.base_url).path
    whole = f"{client.prefix}{client.path}"
    assert whole.startswith(f"{base}/"), "a handler's path comes after the shipped base URL"
    kind = "application/x-www-form-urlencoded" if client.form else "application/json"
    headers = {name: value, "Content-Type": kind, str(api.dialect.header): KEY}
    came = sandbox.http.post(whole, content=client.body(n), headers=headers)
    standing = SendContext(again, live=True, protection=protection(api.dialect, "POST", whole), method="POST")
    reply = Reply(came.status_code, tuple(came.headers.items()), came.content)
    return classify(api.dialect, standing, reply, datetime.now(UTC)).outcome


@every_api
def test_a_request_and_its_resend(api: Api, client: Client, sandbox: Sandbox) -> None:
    """The first succeeds; the second is the stored answer, and there is one effect."""
    marked = api.dialect.replay.header or api.dialect.replay.status
    assert post(api, client, sandbox) == "succeeded"
    assert post(api, client, sandbox, again=True) == ("replayed" if marked else "succeeded")
    assert len(sandbox.effects) == 1


@every_api
def test_another_body_under_a_used_key(api: Api, client: Client, sandbox: Sandbox) -> None:
    """Each API has its own answer to it."""
    post(api, client, sandbox)
    assert post(api, client, sandbox, n=2) == OTHER[client.name]


@every_api
@pytest.mark.parametrize(("kind", "outcome"), [("429", "later"), ("503", "later"), ("500", "unknown")])
def test_a_fault(api: Api, client: Client, sandbox: Sandbox, kind: str, outcome: str) -> None:
    """What was not executed is later, and what may have been is unknown."""
    sandbox.fault(client.prefix, kind)
    assert post(api, client, sandbox) == outcome
