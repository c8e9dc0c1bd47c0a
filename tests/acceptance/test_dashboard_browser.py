"""The dashboard in a real browser on a real deployment: the tasks of an operator on call."""

import hmac
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from firstseen.admin import user_entry
from receiver.ledger.store import Store
from tests.services.browser import DESKTOP, MISSING, PHONE, PROGRAM, Tab, browsing
from tests.services.checkout import CHECKOUT
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.stage import Stage, crowd, set_up
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason=MISSING),
    pytest.mark.timeout(180),
]
PASSWORD, GITHUB_SECRET = "correct horse battery", "github-secret"
SOURCES = """[stripe]
provider = "stripe"
secrets_env = "STRIPE_WEBHOOK_SECRET"
redact = ["$.data.object.email"]

[github]
provider = "github"
secrets_env = "GITHUB_WEBHOOK_SECRETS"
"""
SHOTS = [
    ("overview", "light", DESKTOP),
    ("overview", "dark", DESKTOP),
    ("parked", "light", DESKTOP),
    ("queue", "dark", DESKTOP),
    ("overview", "light", PHONE),
]
STILL = 0.01
"""The largest layout shift allowed: a tenth of the limit that Web Vitals rate as good."""
PICTURES = os.environ.get("FIRSTSEEN_PICTURES")
"""The folder that keeps the pictures of docs/dashboard.md: FIRSTSEEN_PICTURES=docs/pictures renews them."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run one browser for all of these tests."""
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    """Run one broker for all of these tests."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def staged(
    databases: Databases, broker: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Stage]]:
    """Deploy web and worker on a ledger that has one event of every kind."""
    url = databases.migrated("sqlite")
    store = Store(url)
    crowd(store)
    stage = set_up(store)
    store.close()
    env = {"FIRSTSEEN_USERS": user_entry("ada", PASSWORD), "FIRSTSEEN_SWEEP": "1s", "STANNP_API_KEY": "key:"}
    folder = tmp_path_factory.mktemp("board")
    deployment = Deployment(
        folder, url, broker.url, sources=SOURCES, env=env | {"GITHUB_WEBHOOK_SECRETS": GITHUB_SECRET}
    )
    try:
        yield deployment.start(), stage
    finally:
        deployment.stop()
        databases.drop(url)


@pytest.fixture
def deployment(staged: tuple[Deployment, Stage]) -> Deployment:
    """Give the running deployment."""
    return staged[0]


@pytest.fixture
def stage(staged: tuple[Deployment, Stage]) -> Stage:
    """Give the ids of the staged events."""
    return staged[1]


@pytest.fixture
def tab(browser: Browser, deployment: Deployment) -> Iterator[Tab]:
    """Open a window; the test fails on any console error in it."""
    opened = Tab(browser, deployment.url)
    yield opened
    opened.close()
    assert opened.trouble == []


def pages_of(stage: Stage) -> dict[str, str]:
    """Return the address of each page by its name."""
    return {
        "overview": "/",
        "events": "/events",
        "nothing": "/events?type=nothing",
        "event": f"/events/{stage.done}?bodies=1",
        "dead": f"/events/{stage.dead}",
        "parked": f"/events/{stage.parked}",
        "call": f"/calls/{stage.parked_call}",
        "queue": "/queue",
        "queue-dead": "/queue?state=dead",
        "bulk": "/replays/new?what=rerun&source=stripe&state=done",
        "sources": "/sources",
        "apis": "/apis",
        "missing": "/events/01a213c9-d9d6-7fc5-a4a2-7db46818623b",
    }


@pytest.mark.parametrize(("scheme", "size"), [("light", DESKTOP), ("dark", PHONE)])
def test_every_page_is_accessible(
    browser: Browser, deployment: Deployment, stage: Stage, scheme: str, size: dict[str, int]
) -> None:
    """No page, light or dark, has a serious axe-core violation, a sideways scroll or a layout shift."""
    tab = Tab(browser, deployment.url, scheme=scheme, size=size)
    found = dict[str, list[str]]()
    try:
        tab.page.goto("/")
        found["sign-in"] = tab.violations()
        page = tab.sign_in("ada", PASSWORD)
        for name, path in pages_of(stage).items():
            page.goto(path)
            if name == "overview":
                expect(page.locator("#chart canvas")).to_be_visible()
            wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
            shift = tab.shift()
            found[name] = tab.violations() + (["it scrolls sideways"] if wide else [])
            found[name] += [f"it moves while it loads: {shift}"] if shift > STILL else []
    finally:
        tab.close()
    assert {name: grave for name, grave in found.items() if grave} == {}
    assert tab.trouble == []


def test_pages_are_pictured(browser: Browser, deployment: Deployment, stage: Stage, tmp_path: Path) -> None:
    """Each picture of docs/dashboard.md shows a working page and is small enough for the repository."""
    folder = CHECKOUT / PICTURES if PICTURES else tmp_path
    for name, scheme, size in SHOTS:
        tab = Tab(browser, deployment.url, scheme=scheme, size=size)
        page = tab.sign_in("ada", PASSWORD, pages_of(stage)[name])
        if name == "overview":
            expect(page.locator("#chart-words")).to_contain_text("accepted")
        picture = folder / f"{name}-{'phone' if size == PHONE else scheme}.png"
        page.screenshot(path=picture, animations="disabled")
        tab.close()
        assert tab.trouble == []
        assert 5_000 < picture.stat().st_size < 150_000


def test_a_wrong_password_is_refused(tab: Tab) -> None:
    """A wrong password shows an error beside the form, keeps the name, and signs nobody in."""
    page = tab.sign_in("ada", "wrong password")
    expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    expect(page.get_by_label("Name")).to_have_value("ada")
    page.goto("/events")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def test_an_event_is_found_and_its_story_read(tab: Tab, stage: Stage) -> None:
    """An alert's link leads through the sign-in; a search by id leads to the event's timeline."""
    page = tab.sign_in("ada", PASSWORD, "/events")
    page.keyboard.press("/")
    page.keyboard.type("evt_1Qx7done")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("event_id=evt_1Qx7done"))
    page.get_by_role("link", name="invoice.paid").click()
    expect(page).to_have_url(re.compile(str(stage.done)))
    moments = page.locator(".timeline li .what").all_text_contents()
    wanted = [
        "First seen",
        "Attempt 0.1 started",
        "succeeded (201)",
        "came through",
        "duplicate",
        "other body",
    ]
    assert [any(word in moment for moment in moments) for word in wanted] == [True] * 6, moments
    expect(page.locator("pre").first).to_contain_text('"email": "[redacted]"')


def test_a_dead_event_is_retried_and_turns_done(tab: Tab, deployment: Deployment, stage: Stage) -> None:
    """One click retries the event; without a reload the page shows the end and the person's name."""
    page = tab.sign_in("ada", PASSWORD, f"/events/{stage.dead}")
    expect(page.locator("#story")).to_have_attribute("data-state", "dead")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Retried: it runs as soon as a worker is free.")).to_be_visible()
    expect(page.locator("#story")).to_have_attribute("data-state", "done")
    expect(page.get_by_text("ada retried it")).to_be_visible()
    assert "evt_1Qx8ship" in deployment.handlers.lines()


def test_the_queue_is_worked_through_by_keys(tab: Tab, deployment: Deployment) -> None:
    """One key press decides one event and moves the focus to the next; a key held down decides once."""
    page = tab.sign_in("ada", PASSWORD, "/queue")
    items = page.locator(".item")
    expect(items).to_have_count(2)
    page.keyboard.press("j")
    expect(items.nth(0)).to_be_focused()
    page.keyboard.down("r")
    expect(items.nth(0)).to_have_text("Retried: it runs as soon as a worker is free.")
    expect(items.nth(1)).to_be_focused()
    page.keyboard.down("r")
    page.keyboard.up("r")
    expect(items.nth(1)).to_contain_text("Nobody knows whether call 'thank-you letter' happened")
    page.keyboard.press("h")
    expect(items.nth(1)).to_have_text("Noted that it happened; the event goes on.")
    deployment.wait_handled(["evt_1Qx9letter"])
    page.goto("/queue")
    expect(page.get_by_role("heading", name="Nothing is parked")).to_be_visible()


def test_many_are_rerun_after_a_count(tab: Tab, deployment: Deployment) -> None:
    """The page counts the events of a filter before it reruns them, and shows when all are done."""
    ids = [f"evt_bulk_{number}" for number in range(6)]
    deployment.deliver_many(ids, threads=2, type="bulk.test")
    deployment.wait_handled(ids)
    page = tab.sign_in("ada", PASSWORD, "/events?type=bulk.test")
    wait_until(lambda: page.reload() is None or page.locator(".badge.s-done").count() == 6, "all six done")
    page.get_by_role("button", name="Rerun…").click()
    expect(page.get_by_role("heading", name="Rerun 6 events?")).to_be_visible()
    page.get_by_role("button", name="Rerun 6 events").click()
    expect(page.get_by_role("heading", name="Finished")).to_be_visible()
    expect(page.get_by_text("6 done, 0 skipped")).to_be_visible()
    wait_until(lambda: deployment.handlers.lines().count(ids[0]) == 2, "the second run")


def test_a_form_without_the_token_does_nothing(tab: Tab, stage: Stage) -> None:
    """A form with a wrong CSRF token is refused with a sentence."""
    page = tab.sign_in("ada", PASSWORD, f"/events/{stage.done}")
    page.evaluate("document.querySelector('#story form [name=csrf]').value = 'guess'")
    page.get_by_role("button", name="Rerun with new keys").click()
    expect(page.get_by_text("nothing was done")).to_be_visible()
    page.goto(f"/events/{stage.done}")
    expect(page.locator("#story")).to_have_attribute("data-state", "done")


def test_the_overview_updates_itself(tab: Tab, deployment: Deployment) -> None:
    """A new delivery appears without a reload, and a lost connection is shown."""
    page = tab.sign_in("ada", PASSWORD, "/?minutes=1440")
    # No other test delivers to this source: figures are cached, and these must not change meanwhile.
    count = page.locator("tr", has=page.get_by_role("link", name="github")).locator("td").first
    before = int(re.sub(r"\D", "", count.inner_text()))
    body = b'{"zen": "Keep it logically awesome."}'
    signature = hmac.digest(GITHUB_SECRET.encode(), body, "sha256").hex()
    signed = {
        "X-Hub-Signature-256": f"sha256={signature}",
        "X-GitHub-Delivery": "live",
        "X-GitHub-Event": "ping",
    }
    deployment.post("github", body, signed | {"Content-Type": "application/json"}).raise_for_status()
    expect(count).to_have_text(re.compile(rf"^{before + 1}$"))
    page.context.set_offline(True)
    expect(page.get_by_text("Not live")).to_be_visible()
    page.context.set_offline(False)
    expect(page.get_by_text("Not live")).to_be_hidden()
    tab.trouble.clear()  # the browser's console errors while it was offline
