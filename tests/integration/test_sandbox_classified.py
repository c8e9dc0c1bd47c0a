"""The client classifies the sandbox's real responses as the dialects document them."""

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
"""The outcome of another body under a used key; Salesly does not detect it, only our fingerprint does."""

every_api = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture
def api(client: Client, monkeypatch: pytest.MonkeyPatch) -> Api:
    """Return the shipped API with the credential that `make run` generates."""
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    monkeypatch.delenv("FIRSTSEEN_APIS", raising=False)
    return load_apis(APIS, load_dialects(), sandbox_credentials())[client.name]


def post(api: Api, client: Client, sandbox: Sandbox, *, n: int = 1, again: bool = False) -> str:
    """Create something as the client does; return the outcome."""
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
    """The first request succeeds, the second is a replay, and there is one effect."""
    marked = api.dialect.replay.header or api.dialect.replay.status
    assert post(api, client, sandbox) == "succeeded"
    assert post(api, client, sandbox, again=True) == ("replayed" if marked else "succeeded")
    assert len(sandbox.effects) == 1


@every_api
def test_another_body_under_a_used_key(api: Api, client: Client, sandbox: Sandbox) -> None:
    """Each API has its own response to a mismatch."""
    post(api, client, sandbox)
    assert post(api, client, sandbox, n=2) == OTHER[client.name]


@every_api
@pytest.mark.parametrize(("kind", "outcome"), [("429", "later"), ("503", "later"), ("500", "unknown")])
def test_a_fault(api: Api, client: Client, sandbox: Sandbox, kind: str, outcome: str) -> None:
    """Faults without execution are later, and faults with a possible execution are unknown."""
    sandbox.fault(client.prefix, kind)
    assert post(api, client, sandbox) == outcome
