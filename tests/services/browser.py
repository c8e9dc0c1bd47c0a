"""Debian's Chromium, driven through Playwright; whatever it asks of other hosts is written down."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = (
    "chromium is not installed (Debian: apt-get install chromium): the dashboard was not tested in a browser"
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
)
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PATIENCE = 60_000
"""Milliseconds that a page gets for what it should show, on a busy machine."""

GRAVE = ("serious", "critical")


SHIFT = """new Promise(done => {
    let sum = 0;
    new PerformanceObserver(seen => {
        for (const one of seen.getEntries()) if (!one.hadRecentInput) sum += one.value;
    }).observe({ type: "layout-shift", buffered: true });
    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(sum))));
})"""
"""How far the page's parts have moved by themselves, as Web Vitals counts it: 0 is not at all."""


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser; it ends with the block."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One window of a fresh profile. `trouble` has what scripts, the policy or the network complain of."""

    def __init__(self, browser: Browser, url: str, *, scheme: Any = "light", size: Any = DESKTOP) -> None:
        self._context = browser.new_context(base_url=url, color_scheme=scheme, viewport=size)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.trouble = list[str]()
        self.page.on("console", lambda said: self._complain(said.type, said.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda asked: self._check(asked.url, url))

    def _complain(self, kind: str, text: str) -> None:
        # A refused sign-in is an answer, though a browser calls it an error.
        if kind in ("error", "warning") and "status of 4" not in text:
            self.trouble.append(text)

    def _check(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:")):
            self.trouble.append(f"it asks another host: {asked}")

    def sign_in(self, name: str, password: str, path: str = "/") -> Page:
        """Open a page as a visitor, fill in the form that comes instead, and return the window."""
        self.page.goto(path)
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        with self.page.expect_navigation():
            self.page.get_by_role("button", name="Sign in").click()
        return self.page

    def violations(self) -> list[str]:
        """Return axe-core's serious and critical findings on the page that is open."""
        found = Axe().run(self.page, options={"resultTypes": ["violations"]}).response["violations"]
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']][:3]}"
            for one in found
            if one["impact"] in GRAVE
        ]

    def shift(self) -> float:
        """Return how far the parts of the open page have moved since it began to show."""
        return float(self.page.evaluate(SHIFT))

    def close(self) -> None:
        """Close it, and forget its cookies."""
        self._context.close()
