"""docs/providers.md and `firstseen providers`: what the catalogue says, for people."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from config.providers import Provider, load_providers
from firstseen.__main__ import cli
from firstseen.providers import updated
from receiver import describe as wording
from tests.services.presets import over

PAGE = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
CATALOGUE = load_providers()
ALL = over(list(CATALOGUE.values()))


def run(*words: str) -> Result:
    """Run `firstseen providers`."""
    return CliRunner().invoke(cli, ["providers", *words])


def test_the_page_is_current() -> None:
    """The tables are those that `make providers` writes now."""
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text, "run `make providers`"


def test_a_page_without_a_place_is_refused() -> None:
    """A table whose comments were lost is not silently left out."""
    with pytest.raises(ValueError, match="no place for notes"):
        updated(PAGE.read_text(encoding="utf-8").replace("<!-- notes -->", ""))


def test_every_provider_has_a_row() -> None:
    """Each entry stands in the first table once, and what is missing is named as missing."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("<!-- providers -->") : text.index("<!-- end -->")]
    for name, provider in CATALOGUE.items():
        assert table.count(f"| `{name}` |") == (0 if provider.custom else 1)
    missing = text[text.index("## Not there yet") : text.index("## Your own")]
    assert not [p.title for p in CATALOGUE.values() if f" {p.title}," in missing]


def test_the_list_can_be_searched() -> None:
    """Any part of a name or title finds it; nothing found is a sentence and exit 1."""
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


def test_one_provider_is_told_in_words() -> None:
    """Scheme, id, window, handshake, where it was read and how far it can be trusted."""
    told = run("show", "meta").output
    for words in (
        "HMAC-SHA256 of {body}, in hex, in header X-Hub-Signature-256 after 'sha256='",
        "messaging.0.message.mid in each item; without it the body's hash",
        "hub.verify_token in the query is the source's verify token",
        "with the text {challenge} (unsigned, so only with handshake = true in the source)",
        "3d: Meta retries for 36 hours",
        "https://developers.facebook.com/",
        "unverified",
    ):
        assert words in told
    assert "nobody read: answer, window" in run("show", "square").output
    assert "header X-GitHub-Delivery; not signed" in run("show", "github").output


def test_a_misspelt_name_is_a_sentence() -> None:
    """Exit 1, with the name that was meant."""
    answer = run("show", "strip")
    assert answer.exit_code == 1
    assert answer.output == "Error: There is no provider 'strip'; did you mean 'stripe'?\n"


def test_a_name_like_no_other_is_a_sentence() -> None:
    """Two hundred names are no help in an error; the command that lists them is."""
    sentence = "Error: There is no provider 'zzzzzz'; `firstseen providers` lists them.\n"
    assert run("show", "zzzzzz").output == sentence


def test_json_is_for_machines() -> None:
    """One object, or a list as everywhere."""
    assert json.loads(run("show", "xero", "--json").output)["answer"] == (
        "200 with no body, rejections with no body, within 5s"
    )
    assert [entry["name"] for entry in json.loads(run("github", "--json").output)["data"]] == ["github"]


@ALL
def test_every_entry_can_be_told(provider: Provider) -> None:
    """No entry has a scheme, an id or a handshake without words for it."""
    assert wording.proof(provider)
    assert all(wording.scheme(provider))
    assert wording.event_id(provider)
    assert all("{}" not in wording.handshake(table) for table in provider.handshake)
    assert run("show", provider.name).exit_code == 0
