"""The final states of events: done, dead, parked, ignored, and the retries before them."""

import pytest

from tests.services.deployment import Deployment
from tests.services.handlers import SOURCE
from tests.services.ledger import Ledger
from tests.services.waiting import wait_until


def test_a_new_handler_reopens_what_was_ignored(deployment: Deployment) -> None:
    """A worker with a handler for ignored events runs them, while an older worker without one still runs."""
    deployment.start()
    assert deployment.deliver("evt_1", source="other").status_code == 200
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: ledger.state("evt_1") == "ignored", deployment.logs)
    assert ledger.event("evt_1")["attempts"] == 0, "that was no attempt"
    assert deployment.handlers.lines() == []
    (deployment.handlers.folder / "more.py").write_text(SOURCE.format(source="other"))
    deployment.start_worker(FIRSTSEEN_HANDLERS="more", FIRSTSEEN_SWEEP="100ms")
    deployment.wait_handled(["evt_1"])
    wait_until(lambda: ledger.state("evt_1") == "done", lambda: str(ledger.event("evt_1")))
    assert ledger.event("evt_1")["attempts"] == 1


@pytest.fixture
def quick_deployment(deployment: Deployment) -> Deployment:
    """Start with short waits and three attempts."""
    deployment.env |= {
        "FIRSTSEEN_SWEEP": "200ms",
        "FIRSTSEEN_BACKOFF_MAX": "200ms",
        "FIRSTSEEN_ATTEMPTS": "3",
    }
    return deployment.start()


def test_how_attempts_end(quick_deployment: Deployment) -> None:
    """Failures are retried until attempts are used up, Dead is final, and an erased payload parks."""
    for name, orders in {
        "evt_fails_twice": {"fail": 2},
        "evt_fails": {"fail": 9},
        "evt_retries": {"retry": 1, "after": 0.2},
        "evt_dies": {"dead": True},
        "evt_erased": {"retry": 1, "after": 3600},
    }.items():
        quick_deployment.deliver(name, **orders).raise_for_status()
    ledger = Ledger(quick_deployment.database_url)
    wait_until(lambda: ledger.outcomes("evt_erased") == ["retry later"], quick_deployment.logs)
    erased = "UPDATE event SET body = NULL, due_at = received_at WHERE event_id = 'evt_erased'"
    assert ledger.change(erased) == 1
    wait_until(lambda: ledger.states() == {"done": 2, "dead": 2, "parked": 1}, lambda: str(ledger.states()))
    assert ledger.outcomes("evt_fails_twice") == ["retry later", "retry later", "finish"]
    assert ledger.outcomes("evt_fails") == ["retry later", "retry later", "give up"]
    assert all("told to fail" in row["error"] for row in ledger.attempts("evt_fails")), "tracebacks are kept"
    assert "All 3 attempts failed" in ledger.event("evt_fails")["reason"]
    assert ledger.outcomes("evt_retries") == ["retry later", "finish"]
    assert (ledger.outcomes("evt_dies"), ledger.event("evt_dies")["reason"]) == (["give up"], "told to die")
    assert ledger.outcomes("evt_erased") == ["retry later", "park"]
    assert "erased" in ledger.event("evt_erased")["reason"]
    assert sorted(quick_deployment.handlers.lines()) == ["evt_fails_twice", "evt_retries"]
