"""Debian's Chromium, driven by Playwright; requests to other hosts are recorded."""

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
"""Timeout in milliseconds for a page's content, long enough for a busy machine."""

GRAVE = ("serious", "critical")


SHIFT = """new Promise(done => {
    let sum = 0;
    new PerformanceObserver(seen => {
        for (const one of seen.getEntries()) if (!one.hadRecentInput) sum += one.value;
    }).observe({ type: "layout-shift", buffered: true });
    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(sum))));
})"""
"""Cumulative layout shift, as Web Vitals defines it; 0 means that nothing moved."""


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser until the block ends."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A window of a fresh profile. `trouble` lists errors of scripts, content policy and network."""

    def __init__(self, browser: Browser, url: str, *, scheme: Any = "light", size: Any = DESKTOP) -> None:
        self._context = browser.new_context(base_url=url, color_scheme=scheme, viewport=size)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.trouble = list[str]()
        self.page.on("console", lambda line: self._complain(line.type, line.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda asked: self._check(asked.url, url))

    def _complain(self, kind: str, text: str) -> None:
        # Browsers log a 4xx response as an error, but a refused sign-in is none.
        if kind in ("error", "warning") and "status of 4" not in text:
            self.trouble.append(text)

    def _check(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:")):
            self.trouble.append(f"it asks another host: {asked}")

    def sign_in(self, name: str, password: str, path: str = "/") -> Page:
        """Open a page without a session, fill in the sign-in form, and return the page."""
        self.page.goto(path)
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        with self.page.expect_navigation():
            self.page.get_by_role("button", name="Sign in").click()
        return self.page

    def violations(self) -> list[str]:
        """Return axe-core's serious and critical findings on the open page."""
        found = Axe().run(self.page, options={"resultTypes": ["violations"]}).response["violations"]
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']][:3]}"
            for one in found
            if one["impact"] in GRAVE
        ]

    def shift(self) -> float:
        """Return the open page's cumulative layout shift."""
        return float(self.page.evaluate(SHIFT))

    def close(self) -> None:
        """Close the window and forget its cookies."""
        self._context.close()
