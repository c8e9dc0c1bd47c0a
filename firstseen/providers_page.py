"""The tables of docs/providers.md, written from the catalogue: `python -m firstseen.providers_page FILE`."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from config.providers import Provider, load_providers
from config.toml import in_words
from firstseen import wording

HEAD = ("name", "provider", "proof", "event id", "type", "items", "answer", "window", "verified")


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
        "providers": list(_table(HEAD, map(_row, presets))),
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


def _row(provider: Provider) -> tuple[str, ...]:
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
