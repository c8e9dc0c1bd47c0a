"""`providers`: the catalogue, searched and shown."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from config.providers import Provider, load_providers
from config.toml import in_words, suggest
from firstseen.console import CommandFailed, json_option, print_json, print_table, visible
from receiver import describe as wording

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
        raise CommandFailed(
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
        raise CommandFailed(f"There is no provider {name!r}{hint}{'' if hint.endswith('?') else '.'}")
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


# The tables of docs/providers.md, written from the catalogue: `python -m firstseen.providers_page FILE`.


PAGE_HEAD = ("name", "provider", "proof", "event id", "type", "items", "answer", "window", "verified")


def updated(text: str) -> str:
    """Return a page with its tables as the catalogue has them now; each stands between two comments."""
    for name, lines in tables(list(load_providers().values())).items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (begin and end):
            raise ValueError(f"the page has no place for {name}")
        text = "".join([before, begin, "\n", *(f"{line}\n" for line in lines), "\n", end, after])
    return text


def tables(catalogue: list[Provider]) -> dict[str, list[str]]:
    """Return each table's lines by its name."""
    presets = [provider for provider in catalogue if not provider.custom]
    return {
        "providers": list(_table(PAGE_HEAD, map(_table_row, presets))),
        "handshakes": list(_table(("name", "handshake"), _handshakes(presets))),
        "notes": list(_table(("name", "note"), ((_code(p.name), p.note) for p in presets if p.note))),
    }


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield _line(names)
    yield _line(["---"] * len(names))
    yield from map(_line, rows)


def _line(cells: Iterable[str]) -> str:
    # A bar would end the cell, and an angle bracket could begin a tag.
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _table_row(provider: Provider) -> tuple[str, ...]:
    title = f"[{provider.title}]({provider.docs})" if provider.docs else provider.title
    return (
        _code(provider.name),
        title,
        wording.proof(provider),
        " ".join(map(_code, provider.event_id)) or wording.event_id(provider),
        " ".join(map(_code, provider.event_type)),
        _code(provider.batch) if provider.batch else "",
        wording.answer(provider),
        in_words(provider.window),
        wording.trust(provider),
    )


def _handshakes(presets: Iterable[Provider]) -> Iterator[tuple[str, str]]:
    for provider in presets:
        for table in provider.handshake:
            yield _code(provider.name), wording.handshake(table)


def _code(text: str) -> str:
    return f"`{text}`"


def main() -> None:
    """Write the file anew."""
    file = Path(sys.argv[1])
    file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
