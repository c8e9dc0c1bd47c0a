"""What was measured, as the page docs/PERFORMANCE.md and as lines on the screen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from receiver.ledger.store import Store
from tests.bench.accept import Figure
from tests.bench.markdown import Found, table
from tests.bench.targets import percentiles, targets

PAGE = Path(__file__).parents[2] / "docs" / "PERFORMANCE.md"
START, END = "<!-- measured -->", "<!-- end -->"


def store(url: str) -> Store:
    """Open a ledger to measure."""
    return Store(url)


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
    plain = [f"{cut:.1f} ms" for cut in percentiles(found["plain idle"])]
    ours = [f"{p50:.1f} ms", f"{p99:.1f} ms", f"{web:.0f} MB", f"{worker:.0f} MB"]
    return table(
        ["to handler start", "p50", "p99", "web", "worker"],
        [["firstseen, from the commit", *ours], ["plain Celery, from the sending", *plain, "", ""]],
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


def _profile(found: Found) -> str:
    spent = dict(found["profile"])
    bare = spent.pop("bare")
    whole = sum(spent.values())
    rows = [[stage, f"{time:.0f} us", f"{time / bare:.2f} x"] for stage, time in spent.items()]
    total = [
        ["all of it", f"{whole:.0f} us", f"{whole / bare:.2f} x"],
        ["bare view", f"{bare:.0f} us", "1.00 x"],
    ]
    return table(["stage of one delivery", "processor time", "of the bare view"], rows + total)


def settings(found: Found) -> str:
    """Return what the run was made with, as it was read back."""
    facts = {**found["settings"], **found["versions"]}
    return table(["what", "value"], list(facts.items()))


_PARTS: Mapping[str, Callable[[Found], str]] = {
    "accept": _accept,
    "storm": _storm,
    "drain": _drain,
    "idle": _idle,
    "growth": _growth,
    "burst": _burst,
    "profile": _profile,
}


def write(found: Found) -> None:
    """Put the figures into the page, between its two marks."""
    told = [f"### {name.capitalize()}\n\n{part(name, found)}" for name in _PARTS if name in found]
    told.insert(0, f"### Targets\n\n{targets(found)}")
    told.append(f"### Settings and versions\n\n{settings(found)}")
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n\n" + "\n\n".join(told) + f"\n\n{END}{after}")
