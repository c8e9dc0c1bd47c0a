"""docs/dialects.md: every cell has its test, every test its cell, and the catalogue says the same."""

import ast
from dataclasses import dataclass
from pathlib import Path

from config.dialects import Error, load_dialects

ROOT = Path(__file__).resolve().parents[2]
POINTS = (
    "header",
    "lengths",
    "methods",
    "scope",
    "fingerprint",
    "mismatch",
    "concurrent",
    "stored",
    "replay",
    "life",
    "natural",
)
APIS = ("celper", "chronapilot", "salesly", "stannp", "telness")


@dataclass(frozen=True)
class Row:
    """One point of one document."""

    point: str
    api: str
    reading: str
    words: str
    test: str


def rows() -> list[Row]:
    """Return the table's rows."""
    lines = (ROOT / "docs" / "dialects.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [
        Row(c[0], c[1].lower(), c[2], c[3], c[4].strip("`")) for c in cells if len(c) == 5 and c[0] in POINTS
    ]


def named_in(api: str) -> set[str]:
    """Return the names of an API's tests that begin with its name."""
    tree = ast.parse((ROOT / "tests" / "integration" / f"test_sandbox_{api}.py").read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith(f"test_{api}_")}


def test_every_point_of_every_document_has_one_row() -> None:
    """Eleven points, five documents, in this order."""
    assert [(row.point, row.api) for row in rows()] == [(point, api) for point in POINTS for api in APIS]


def test_every_row_has_its_test() -> None:
    """The named tests are those that exist, each named once."""
    for api in APIS:
        named = [row.test for row in rows() if row.api == api]
        assert sorted(named) == sorted(named_in(api)), api


def test_every_row_rests_on_words_or_is_our_choice() -> None:
    """A reading quotes its document, or says that nothing there supports it."""
    for row in rows():
        quoted = row.words.startswith("“") and row.words.endswith("”") and len(row.words) > 10
        assert quoted or row.words == "our choice", row


def test_the_rows_say_what_the_catalogue_says() -> None:
    """Header, lengths, errors, marker and life are the same in the table and in dialects.toml."""
    for api in APIS:
        dialect = load_dialects()[api]
        assert dialect.server
        wanted = {
            "header": f"`{dialect.header}`",
            "lengths": f"{dialect.min_length} to {dialect.max_length} characters",
            "mismatch": _said(dialect.misused) or "another request",
            "concurrent": _said(dialect.locked) or "waits",
            "stored": "2xx only" if dialect.stored == "2xx" else "every answer",
            "replay": f"`{dialect.replay.header}: true`" if dialect.replay.header else "no marker",
            "life": f"{dialect.life.total_seconds() / 3600:g} hours",
        }
        for point, words in wanted.items():
            row = next(row for row in rows() if (row.api, row.point) == (api, point))
            assert words in row.reading, row


def _said(error: Error | None) -> str:
    return f"{error.status} `{error.code}`" if error else ""
