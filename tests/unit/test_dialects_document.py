"""docs/dialects.md agrees with the catalogue, and every cell of it has its test."""

import ast
from dataclasses import dataclass

from config.dialects import Dialect, Error, Replay, load_dialects
from receiver.ledger.states import SendOutcome
from tests.services.checkout import CHECKOUT

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
    """One point of one API's document."""

    point: str
    api: str
    reading: str
    words: str
    test: str


def lines() -> list[str]:
    """Return the lines of all tables."""
    text = (CHECKOUT / "docs" / "dialects.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("| ")]


def rows() -> list[Row]:
    """Return the rows of the table of points."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines()]
    return [
        Row(c[0], c[1].lower(), c[2], c[3], c[4].strip("`")) for c in cells if len(c) == 5 and c[0] in POINTS
    ]


def named_in(api: str) -> set[str]:
    """Return the tests in an API's test file that begin with its name."""
    tree = ast.parse(
        (CHECKOUT / "tests" / "integration" / f"test_sandbox_{api}.py").read_text(encoding="utf-8")
    )
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith(f"test_{api}_")}


def test_every_point_of_every_document_has_one_row() -> None:
    """Eleven points of five documents, in this order."""
    assert [(row.point, row.api) for row in rows()] == [(point, api) for point in POINTS for api in APIS]


def test_every_row_has_its_test() -> None:
    """Each test is named once."""
    for api in APIS:
        named = [row.test for row in rows() if row.api == api]
        assert sorted(named) == sorted(named_in(api)), api


def test_every_row_quotes_its_document_or_is_our_choice() -> None:
    for row in rows():
        quoted = row.words.startswith("“") and row.words.endswith("”") and len(row.words) > 10
        assert quoted or row.words == "our choice", row


def test_the_rows_agree_with_the_catalogue() -> None:
    """Header, lengths, errors, marker and life."""
    for api in APIS:
        dialect = load_dialects()[api]
        assert dialect.server
        wanted = {
            "header": f"`{dialect.header}`",
            "lengths": f"{dialect.min_length} to {dialect.max_length} characters",
            "mismatch": _error_text(dialect.misused) or "another request",
            "concurrent": _error_text(dialect.locked) or "waits",
            "stored": "2xx only" if dialect.stored == "2xx" else "every answer",
            "replay": f"`{dialect.replay.header}: true`" if dialect.replay.header else "no marker",
            "life": f"{_hours(dialect)} hours",
        }
        for point, words in wanted.items():
            row = next(row for row in rows() if (row.api, row.point) == (api, point))
            assert words in row.reading, row


def _error_text(error: Error | None) -> str:
    return " ".join(filter(None, (str(error.status), f"`{error.code}`" * bool(error.code)))) if error else ""


def _hours(dialect: Dialect) -> str:
    return f"{dialect.life.total_seconds() / 3600:g}"


def _listed(entries: tuple[str, ...]) -> str:
    return ", ".join(f"`{entry}`" if "/" in entry else entry.removesuffix(" *") for entry in entries) or "-"


def _replay(replay: Replay) -> str:
    if replay.status:
        return f"{replay.status}, and `{replay.outcome}` in its body"
    return " or ".join(f"`{name}: true`" for name in (replay.header, replay.also) if name) or "nothing"


def client_row(name: str, dialect: Dialect) -> str:
    """Return a dialect's row in the table of what the client reads."""
    place = f"`{dialect.header}`" + ", quoted" * dialect.quoted if dialect.header else "-"
    published = "life" in dialect.model_fields_set
    cells = (
        f"`{name}`",
        place,
        f"{dialect.min_length} to {dialect.max_length}" if dialect.carries_keys else "-",
        (f"{_hours(dialect)}h" if published else "not published") if dialect.carries_keys else "-",
        _listed(dialect.covers),
        _listed(dialect.repeatable),
        (_error_text(dialect.locked) or str(dialect.in_flight)) if dialect.carries_keys else "-",
        (_error_text(dialect.misused) or dialect.mismatch or "unstated") if dialect.carries_keys else "-",
        _replay(dialect.replay) + (f"; hint `{dialect.should_retry}`" if dialect.should_retry else ""),
    )
    return f"| {' | '.join(cells)} |"


def test_the_clients_table_agrees_with_the_catalogue() -> None:
    """One row for each dialect, in the catalogue's order."""
    wanted = [client_row(name, dialect) for name, dialect in load_dialects().items()]
    found = [line for line in lines() if line.startswith("| `") and line.count("|") == 10]
    assert found == wanted


def test_the_table_of_responses_has_every_outcome() -> None:
    """And no other."""
    cells = [line.split("|") for line in lines() if line.count("|") == 5 and "| *" in line]
    assert {cell[2].strip(" *") for cell in cells} == set(SendOutcome)
    assert {cell[3].split()[0] for cell in cells} == {"open", "closed"}


def test_dialects_without_a_server_half_quote_their_documents() -> None:
    """Each point has a quotation or is our choice, and agrees with the catalogue."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines()]
    found = {(c[1].lower(), c[0]): c for c in cells if len(c) == 4 and c[1] in {"IETF", "Stripe", "PayPal"}}
    for api in ("ietf", "stripe", "paypal"):
        dialect = load_dialects()[api]
        wanted = {
            "header": f"`{dialect.header}`",
            "lengths": f"{dialect.min_length} to {dialect.max_length} characters",
            "methods": _listed(dialect.covers).split(", ")[0],
            "in flight": str(dialect.locked and dialect.locked.status),
            "mismatch": str(dialect.misused and dialect.misused.status),
            "replay": f"`{dialect.replay.header}: true`" if dialect.replay.header else "no marker",
            "life": f"{_hours(dialect)} hours" if "life" in dialect.model_fields_set else "not published",
        }
        for point, words in wanted.items():
            _, _, reading, basis = found[api, point]
            assert words in reading, (api, point)
            assert basis.startswith(("“", "our choice")), (api, point)
