"""What was measured, as the page docs/PERFORMANCE.md and as lines on the screen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from receiver.ledger import Store
from tests.bench.accept import Figure
from tests.bench.drain import percentiles

PAGE = Path(__file__).parents[2] / "docs" / "PERFORMANCE.md"
START, END = "<!-- measured -->", "<!-- end -->"
Found = Mapping[str, Any]


def store(url: str) -> Store:
    """Open a ledger to measure."""
    return Store(url)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def part(name: str, found: Found) -> str:
    """Return one part as Markdown."""
    return _PARTS[name](found)


def _accept(found: Found) -> str:
    return _figures([*found["accept"], *_renamed(found["gunicorn"], "bare under gunicorn")])


def _storm(found: Found) -> str:
    return _figures(found["storm"])


def _renamed(figures: Sequence[Figure], name: str) -> list[Figure]:
    return [replace(one, contestant=name) for one in figures]


def _figures(figures: Sequence[Figure]) -> str:
    bare = {(one.workload, one.connections): one.rate for one in figures if one.contestant == "bare"}
    fallback = {one.connections: one.rate for one in figures if one.contestant == "bare"}
    rows = []
    for one in sorted(figures, key=lambda one: (one.workload, one.connections, -one.rate)):
        limit = bare.get((one.workload, one.connections)) or fallback.get(one.connections) or one.rate
        ratio = f"{one.rate / limit:.2f} x"
        times = f"{one.p50:.1f} ms", f"{one.p99:.1f} ms"
        place = one.workload, one.connections, one.contestant
        rows.append([*place, f"{one.rate:,.0f}/s", ratio, *times, one.bad])
    return table(
        ["workload", "connections", "contestant", "rate", "of bare Flask", "p50", "p99", "not 200"], rows
    )


def _drain(found: Found) -> str:
    plain = found["drain"][0].rate
    rows = [
        [one.name, f"{one.rate:,.0f}/s", f"{one.rate / plain:.2f} x", f"{one.cpu * 1000:.2f} ms"]
        for one in found["drain"]
    ]
    return table(["what", "rate", "of plain Celery", "worker's processor time each"], rows)


def _idle(found: Found) -> str:
    values, web, worker = found["idle"]
    p50, p99 = percentiles(values)
    return table(
        ["accepted to handler start, p50", "p99", "web", "worker"],
        [[f"{p50:.1f} ms", f"{p99:.1f} ms", f"{web:.0f} MB", f"{worker:.0f} MB"]],
    )


def _growth(found: Found) -> str:
    first = {}
    rows = []
    for one in found["growth"]:
        start = first.setdefault(one.kind, one)
        ratios = f"{one.new / start.new:.2f} x", f"{one.duplicate / start.duplicate:.2f} x"
        speeds = f"{one.new:.0f} us", ratios[0], f"{one.duplicate:.0f} us", ratios[1]
        rows.append([one.kind, f"{one.rows:,}", *speeds])
    return table(["database", "rows", "first-seen", "slower", "duplicate", "slower"], rows)


def _burst(found: Found) -> str:
    one = found["burst"]
    row = [one.bad, f"{one.slowest:.2f} s", f"{one.memory:.0f} MB", one.recorded]
    return table(["not 200", "slowest answer", "web", "recorded"], [row])


_PARTS: Mapping[str, Callable[[Found], str]] = {
    "accept": _accept,
    "storm": _storm,
    "drain": _drain,
    "idle": _idle,
    "growth": _growth,
    "burst": _burst,
}


def write(found: Found) -> None:
    """Put the figures into the page, between its two marks."""
    told = [f"### {name.capitalize()}\n\n{part(name, found)}" for name in _PARTS if name in found]
    facts = {**found["settings"], **found["versions"]}
    told.append("### Settings and versions\n\n" + table(["what", "value"], list(facts.items())))
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n\n" + "\n\n".join(told) + f"\n\n{END}{after}")
