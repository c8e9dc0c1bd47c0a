"""`providers`: the catalogue, searched and shown.

`python -m firstseen.providers FILE` writes the catalogue's tables into a page such as docs/providers.md.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from config.providers import Provider, load_providers
from config.toml import in_words, suggest
from firstseen.console import CommandFailed, json_option, print_json, print_table, visible
from receiver import describe

SHOW = "show"

HEAD = ("name", "title", "proof", "event id", "window", "verified")
PAGE_HEAD = ("name", "provider", "proof", "event id", "type", "items", "answer", "window", "verified")


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
    part = search.lower()
    found = [one for one in load_providers().values() if part in one.name or part in one.title.lower()]
    if as_json:
        print_json({"data": [facts(provider) for provider in found], "next": None})
    elif found:
        print_table(
            HEAD,
            (
                (
                    provider.name,
                    provider.title,
                    describe.proof(provider),
                    "" if provider.custom else provider.policy,
                    in_words(provider.window),
                    describe.trust(provider),
                )
                for provider in found
            ),
        )
    if not found:
        raise CommandFailed(
            f'No provider\'s name or title holds {search!r}; provider = "hmac" describes any that signs.'
        )


def _show(name: str, *, as_json: bool) -> None:
    catalogue = load_providers()
    if name not in catalogue:
        hint = suggest(name, catalogue, "firstseen providers")
        raise CommandFailed(f"There is no provider {name!r}{hint}{'' if hint.endswith('?') else '.'}")
    if as_json:
        print_json(facts(catalogue[name]))
        return
    click.echo(click.style(f"{name}  {catalogue[name].title}", bold=True))
    for label, value in facts(catalogue[name]).items():
        if label in {"name", "title"} or not value:
            continue
        for number, line in enumerate([value] if isinstance(value, str) else value):
            head = "" if number else label.replace("_", " ")
            click.echo(click.style(head.ljust(13), bold=True) + visible(line))


def facts(provider: Provider) -> dict[str, Any]:
    """Return everything that is known of a provider, in words."""
    return {
        "name": provider.name,
        "title": provider.title,
        "scheme": describe.scheme(provider),
        "event_id": describe.event_id(provider),
        "event_type": " + ".join(map(describe.places, provider.event_type)),
        "batch": describe.places(provider.batch) if provider.batch else "",
        "handshake": [describe.handshake(table) for table in provider.handshake],
        "answer": describe.answer(provider),
        "window": f"{in_words(provider.window)}: {provider.window_reason}",
        "kept_headers": list(provider.keep_headers),
        "note": provider.note,
        "docs": provider.docs,
        "verified": describe.verified(provider),
    }


def updated(text: str) -> str:
    """Return a page with its tables as the catalogue has them now; each stands between two comments."""
    presets = [provider for provider in load_providers().values() if not provider.custom]
    handshakes = [
        (_code(provider.name), describe.handshake(table))
        for provider in presets
        for table in provider.handshake
    ]
    tables = {
        "providers": _table(PAGE_HEAD, map(_page_row, presets)),
        "handshakes": _table(("name", "handshake"), handshakes),
        "notes": _table(("name", "note"), ((_code(one.name), one.note) for one in presets if one.note)),
    }
    for name, lines in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (begin and end):
            raise ValueError(f"the page has no place for {name}")
        text = "".join([before, begin, "\n", *(f"{line}\n" for line in lines), "\n", end, after])
    return text


def _page_row(provider: Provider) -> tuple[str, ...]:
    return (
        _code(provider.name),
        f"[{provider.title}]({provider.docs})" if provider.docs else provider.title,
        describe.proof(provider),
        " ".join(map(_code, provider.event_id)) or describe.event_id(provider),
        " ".join(map(_code, provider.event_type)),
        _code(provider.batch) if provider.batch else "",
        describe.answer(provider),
        in_words(provider.window),
        describe.trust(provider),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    # A bar would end the cell, and an angle bracket could begin a tag.
    return [
        "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
        for cells in (head, ("---",) * len(head), *rows)
    ]


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("Name the page to write, such as python -m firstseen.providers docs/providers.md")
    page = Path(sys.argv[1])
    page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
