"""The catalogue read from its file: an entry is parsed and checked when it is first asked for.

A process needs the few entries that its sources name, and should not wait for the others at its start. A test
loads every entry, and holds the whole file against what is read piece by piece.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.errors import ConfigError
from config.providers import Provider
from config.tables import explain, kind_of, parse_toml, read_text

CATALOGUE = Path(__file__).with_name("providers.toml")

# The heads [name], [name.scheme] and [[name.handshake]].
_HEAD = re.compile(r"^\[\[?[ \t]*([A-Za-z0-9_-]+)", re.MULTILINE)


class Catalogue(Mapping[str, Provider]):
    """Entries by name, in the file's order; raises ConfigError with one sentence for a wrong one.

    An entry's tables stand together, each with a head at the beginning of its line.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._text = read_text(file)
        self._spans = self._find_spans()
        self._loaded: dict[str, Provider] = {}

    def _find_spans(self) -> dict[str, tuple[int, int]]:
        heads = [(match[1], match.start()) for match in _HEAD.finditer(self._text)]
        first = heads[0][1] if heads else len(self._text)
        for name, value in parse_toml(self._file, self._text[:first]).items():
            raise ConfigError(_no_table(self._file, name, value))
        spans: dict[str, tuple[int, int]] = {}
        ends = [*(start for _, start in heads[1:]), len(self._text)]
        for (name, start), end in zip(heads, ends, strict=True):
            begin, last = spans.get(name, (start, start))
            if last != start:
                raise ConfigError(f"{self._file}: the tables of [{name}] do not stand together")
            spans[name] = (begin, end)
        return spans

    def __getitem__(self, name: str) -> Provider:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def _load(self, name: str) -> Provider:
        entry = self._entry(name)
        try:
            return Provider.model_validate({**entry, **self._shared_scheme(name, entry), "name": name})
        except ValidationError as error:
            raise ConfigError(f"{self._file}: [{name}] {explain(error)}") from None

    def _shared_scheme(self, name: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        other = entry.get("scheme")
        if not isinstance(other, str):
            return {}
        scheme = self._entry(other).get("scheme") if other in self._spans else None
        if not isinstance(scheme, dict):
            raise ConfigError(f"{self._file}: [{name}] scheme is {other!r}, which is no entry with a scheme")
        return {"scheme": scheme}

    def _entry(self, name: str) -> dict[str, Any]:
        begin, end = self._spans[name]
        above = "\n" * self._text.count("\n", 0, begin)  # an error tells the line in the whole file
        entry = parse_toml(self._file, above + self._text[begin:end])[name]
        if not isinstance(entry, dict):
            raise ConfigError(_no_table(self._file, name, entry))
        return entry


def load_providers(path: Path | None = None) -> Mapping[str, Provider]:
    """Open the catalogue; an entry that is wrong raises ConfigError when it is asked for."""
    return Catalogue(path or CATALOGUE)


def _no_table(file: Path, name: str, value: Any) -> str:
    return f"{file}: {name} is {kind_of(value)}; every entry must be a table such as [stripe]"
