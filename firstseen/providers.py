"""`providers`: the catalogue, searched and shown."""

from collections.abc import Iterable
from typing import Any

import click

from config.providers import Provider, load_providers
from config.toml import in_words, suggest
from firstseen import wording
from firstseen.context import No
from firstseen.options import json_option
from firstseen.output import print_json, print_table, visible

SHOW = "show"
HEAD = ("name", "title", "proof", "event id", "window", "verified")


@click.command()
@click.argument("words", nargs=-1, metavar="[SEARCH | show NAME]")
@json_option
def providers(words: tuple[str, ...], *, as_json: bool) -> None:
    """List the providers that a source can name, or show one of them.

    SEARCH is any part of a name or title. Exits 1 when nothing is found.
    """
    if words[:1] == (SHOW,) and len(words) > 1:
        _show(" ".join(words[1:]), as_json=as_json)
    else:
        _list(" ".join(words), as_json=as_json)


def _list(search: str, *, as_json: bool) -> None:
    found = [provider for provider in load_providers().values() if _fits(provider, search.lower())]
    if as_json:
        print_json({"data": [facts(provider) for provider in found], "next": None})
    elif found:
        print_table(HEAD, map(_row, found))
    if not found:
        raise No(
            f'No provider\'s name or title holds {search!r}; provider = "hmac" describes any that signs.'
        )


def _fits(provider: Provider, search: str) -> bool:
    return search in provider.name or search in provider.title.lower()


def _row(provider: Provider) -> tuple[str, ...]:
    policy = "" if provider.custom else provider.policy
    window, proof = in_words(provider.window), wording.proof(provider)
    return (provider.name, provider.title, proof, policy, window, wording.trust(provider))


def _show(name: str, *, as_json: bool) -> None:
    catalogue = load_providers()
    if name not in catalogue:
        hint = suggest(name, catalogue, "firstseen providers")
        raise No(f"There is no provider {name!r}{hint}{'' if hint.endswith('?') else '.'}")
    if as_json:
        print_json(facts(catalogue[name]))
        return
    click.echo(click.style(f"{name}  {catalogue[name].title}", bold=True))
    for label, lines in facts(catalogue[name]).items():
        if label not in {"name", "title"} and lines:
            _print(label.replace("_", " "), [lines] if isinstance(lines, str) else lines)


def _print(label: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        click.echo(click.style(("" if number else label).ljust(13), bold=True) + visible(line))


def facts(provider: Provider) -> dict[str, Any]:
    """Return everything that is known of a provider, in words."""
    return {
        "name": provider.name,
        "title": provider.title,
        "scheme": wording.scheme(provider),
        "event_id": wording.event_id(provider),
        "event_type": " + ".join(map(wording.places, provider.event_type)),
        "batch": wording.places(provider.batch) if provider.batch else "",
        "handshake": [wording.handshake(table) for table in provider.handshake],
        "answer": wording.answer(provider),
        "window": f"{in_words(provider.window)}: {provider.window_reason}",
        "kept_headers": list(provider.keep_headers),
        "note": provider.note,
        "docs": provider.docs,
        "verified": wording.verified(provider),
    }
