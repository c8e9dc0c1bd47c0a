"""How things look on a terminal: tables, colours, and nothing that a sender could smuggle in."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

COLOURS = {
    "received": "white",
    "processing": "cyan",
    "waiting": "blue",
    "done": "green",
    "parked": "yellow",
    "dead": "red",
    "ignored": "bright_black",
    "pending": "blue",
    "succeeded": "green",
    "rejected": "red",
    "replaced": "bright_black",
    "given up": "bright_black",
    "ok": "green",
    "warn": "yellow",
    "FAIL": "red",
}


def print_json(value: Any) -> None:
    """Print a value as JSON, one line, ASCII only."""
    click.echo(json.dumps(value))


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a head in columns; the last column keeps its length."""
    lines = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    click.echo(click.style(_joined(head, widths), bold=True))
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(tinted(cell) for cell in padded).rstrip())


def labelled(label: str, fact: str) -> str:
    """Return a line that begins with a label, in a column of its own."""
    return click.style(label.ljust(12) if fact else label, bold=True) + fact


def tinted(text: str) -> str:
    """Return a word in its colour, if it has one; blanks around it stay."""
    colour = COLOURS.get(text.strip())
    return click.style(text, fg=colour) if colour else text


def visible(value: Any) -> str:
    """Return a value as one line without control characters: ids and reasons come from outside."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def visible_lines(text: str) -> list[str]:
    """Return a longer text as lines, each without control characters."""
    return [visible(line) for line in text.splitlines()]


def moment(text: str | None) -> str:
    """Return an RFC 3339 time shortened to whole seconds."""
    return "" if text is None else text[:19] + "Z"


def plural(number: int, word: str) -> str:
    """Return `1 event`, `2 events`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
