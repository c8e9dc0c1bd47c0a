"""docs/providers.md and `firstseen providers`."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from config.providers import Provider, load_providers
from firstseen.__main__ import cli
from firstseen.providers import updated
from receiver import describe as wording
from tests.services.checkout import CHECKOUT
from tests.services.presets import over

PAGE = CHECKOUT / "docs" / "providers.md"
CATALOGUE = load_providers()
ALL = over(list(CATALOGUE.values()))


def run(*words: str) -> Result:
    """Run `firstseen providers`."""
    return CliRunner().invoke(cli, ["providers", *words])


def test_the_page_is_current() -> None:
    """Its tables are those that `make providers` writes."""
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text, "run `make providers`"


def test_a_page_without_its_comments_is_refused() -> None:
    """Otherwise a table would silently be left out."""
    with pytest.raises(ValueError, match="no place for notes"):
        updated(PAGE.read_text(encoding="utf-8").replace("<!-- notes -->", ""))


def test_a_page_that_is_not_named_is_asked_for() -> None:
    """Without a file, `python -m firstseen.providers` says what to write."""
    command = [sys.executable, "-m", "firstseen.providers"]
    found = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    sentence = "Name the page to write, such as python -m firstseen.providers docs/providers.md\n"
    assert (found.returncode, found.stdout, found.stderr) == (1, "", sentence)


def test_every_provider_has_a_row() -> None:
    """No provider of the catalogue is in the section of missing ones."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("<!-- providers -->") : text.index("<!-- end -->")]
    for name, provider in CATALOGUE.items():
        assert table.count(f"| `{name}` |") == (0 if provider.custom else 1)
    missing = text[text.index("## Not there yet") : text.index("## Your own")]
    assert not [p.title for p in CATALOGUE.values() if f" {p.title}," in missing]


def test_the_list_can_be_searched() -> None:
    """By any part of a name or title; no match prints a sentence and exits 1."""
    found = run("git").output
    assert [line.split()[0] for line in found.splitlines()[1:]] == [
        "github",
        "gitlab",
        "gitlab-signing-token",
    ]
    assert len(run().output.splitlines()) == len(CATALOGUE) + 1
    nothing = run("no such")
    assert nothing.exit_code == 1
    assert "No provider's name or title holds 'no such'" in nothing.output


def test_one_provider_is_described_in_words() -> None:
    """Scheme, id, window, handshake, documentation, and how far it is verified."""
    output = run("show", "meta").output
    for words in (
        "HMAC-SHA256 of {body}, in hex, in header X-Hub-Signature-256 after 'sha256='",
        "messaging.0.message.mid in each item; without it the body's hash",
        "hub.verify_token in the query is the source's verify token",
        "with the text {challenge} (unsigned, so only with handshake = true in the source)",
        "3d: Meta retries for 36 hours",
        "https://developers.facebook.com/",
        "unverified",
    ):
        assert words in output
    assert "nobody read: answer, window" in run("show", "square").output
    assert "header X-GitHub-Delivery; not signed" in run("show", "github").output


def test_a_misspelt_name_gets_a_suggestion() -> None:
    """And exit 1."""
    answer = run("show", "strip")
    assert answer.exit_code == 1
    assert answer.output == "Error: There is no provider 'strip'; did you mean 'stripe'?\n"


def test_an_unknown_name_gets_the_command_that_lists_them() -> None:
    """Two hundred names would not help."""
    sentence = "Error: There is no provider 'zzzzzz'; `firstseen providers` lists them.\n"
    assert run("show", "zzzzzz").output == sentence


def test_json_is_an_object_or_a_list() -> None:
    assert json.loads(run("show", "xero", "--json").output)["answer"] == (
        "200 with no body, rejections with no body, within 5s"
    )
    assert [entry["name"] for entry in json.loads(run("github", "--json").output)["data"]] == ["github"]


@ALL
def test_every_entry_can_be_described(provider: Provider) -> None:
    assert wording.proof(provider)
    assert all(wording.scheme(provider))
    assert wording.event_id(provider)
    assert all("{}" not in wording.handshake(table) for table in provider.handshake)
    assert run("show", provider.name).exit_code == 0
