"""Templates of signed bytes, such as `{timestamp}.{body}`: their placeholders, parsed and checked."""

import re
from dataclasses import dataclass

PLAIN = frozenset(
    {"body", "body_sha256_hex", "timestamp", "id", "url", "url_no_query", "path_query", "method", "secret"}
)
NAMED = frozenset({"json", "header", "query", "form", "config"})

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Literal:
    """Bytes that stand for themselves."""

    text: str


@dataclass(frozen=True)
class Placeholder:
    """A value of the delivery; `name` is empty but for json, header, query, form and config."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


Part = Literal | Placeholder


def parse_template(text: str) -> tuple[Part, ...]:
    """Split a template; raise ValueError with a sentence on a placeholder that does not exist."""
    parts: list[Part] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        parts += _literal(text[end : match.start()])
        parts.append(_placeholder(match[1]))
        end = match.end()
    return tuple(parts + _literal(text[end:]))


def _literal(text: str) -> list[Part]:
    if "{" in text or "}" in text:
        raise ValueError(f"{text!r} has a brace without its other half")
    return [Literal(text)] if text else []


def _placeholder(text: str) -> Placeholder:
    kind, _, name = text.partition(":")
    if (kind in PLAIN and text == kind) or (kind in NAMED and name):
        return Placeholder(kind, name)
    allowed = ", ".join(
        [*(f"{{{name}}}" for name in sorted(PLAIN)), *(f"{{{k}:...}}" for k in sorted(NAMED))]
    )
    raise ValueError(f"{{{text}}} is not a placeholder; allowed are {allowed}")
