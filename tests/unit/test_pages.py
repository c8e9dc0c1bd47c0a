"""README and docs: every relative link leads somewhere, and every file that a page names exists."""

import re
from pathlib import Path

import pytest

from tests.services.checkout import CHECKOUT

PAGES = [CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
FOLDERS = (".ci", "config", "docs", "firstseen", "receiver", "tests", "worker")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
NAMED = re.compile(
    r"`([\w./-]+\.(?:py|toml|md|html|css|js|yml|txt)|(?:config|docs|firstseen|receiver|tests|worker)/[\w/-]*)`"
)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def paths() -> set[str]:
    """Return every file and folder of the checkout's own, relative to it."""
    below = (
        path
        for folder in FOLDERS
        for path in (CHECKOUT / folder).rglob("*")
        if "__pycache__" not in path.parts
    )
    return {*FOLDERS, *(path.relative_to(CHECKOUT).as_posix() for path in [*below, *CHECKOUT.glob("*.*")])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    """A link names a file beside the page, and an anchor a heading of it."""
    broken = [
        f"{target}#{anchor}"
        for target, anchor in LINK.findall(page.read_text(encoding="utf-8"))
        if not (linked := page.parent / target if target else page).exists()
        or (anchor and anchor not in anchors(linked))
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_every_file_that_is_named_exists(page: Path) -> None:
    """A page may leave out the folders of a file that it names, but not name one that is gone."""
    known = paths()
    names = {name.rstrip("/") for name in NAMED.findall(page.read_text(encoding="utf-8"))}
    assert {name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in known)} == set()
