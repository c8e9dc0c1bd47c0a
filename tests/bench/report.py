"""The results of a run, as docs/PERFORMANCE.md and as lines on the screen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tests.bench.accept import Figure
from tests.bench.markdown import Found, table
from tests.bench.targets import percentiles, targets
from tests.services.checkout import CHECKOUT

PAGE = CHECKOUT / "docs" / "PERFORMANCE.md"
START, END = "<!-- measured -->", "<!-- end -->"


def part(name: str, found: Found) -> str:
    """Return one part as Markdown."""
    return _PARTS[name](found)


def _accept(found: Found) -> str:
    return _figures([*found["accept"], *_renamed(found["gunicorn"], "bare under gunicorn")])


def _storm(found: Found) -> str:
    return _figures(found["storm"])


def _renamed(figures: Sequence[Figure], name: str) -> list[Figure]:
    return [replace(figure, contestant=name) for figure in figures]


def _figures(figures: Sequence[Figure]) -> str:
    bare = {
        (figure.workload, figure.connections): figure.rate
        for figure in figures
        if figure.contestant == "bare"
    }
    fallback = {figure.connections: figure.rate for figure in figures if figure.contestant == "bare"}
    rows = []
    for figure in sorted(figures, key=lambda figure: (figure.workload, figure.connections, -figure.rate)):
        limit = (
            bare.get((figure.workload, figure.connections)) or fallback.get(figure.connections) or figure.rate
        )
        ratio = f"{figure.rate / limit:.2f} x"
        times = f"{figure.p50:.1f} ms", f"{figure.p99:.1f} ms"
        place = figure.workload, figure.connections, figure.contestant
        rows.append([*place, f"{figure.rate:,.0f}/s", ratio, *times, figure.bad])
    return table(
        ["workload", "connections", "contestant", "rate", "of bare Flask", "p50", "p99", "not 200"], rows
    )


def _drain(found: Found) -> str:
    plain = found["drain"][0].rate
    rows = [
        [figure.name, f"{figure.rate:,.0f}/s", f"{figure.rate / plain:.2f} x", f"{figure.cpu * 1000:.2f} ms"]
        for figure in found["drain"]
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
    for grown in found["growth"]:
        start = first.setdefault(grown.kind, grown)
        ratios = f"{grown.new / start.new:.2f} x", f"{grown.duplicate / start.duplicate:.2f} x"
        speeds = f"{grown.new:.0f} us", ratios[0], f"{grown.duplicate:.0f} us", ratios[1]
        rows.append([grown.kind, f"{grown.rows:,}", *speeds])
    return table(["database", "rows", "first-seen", "slower", "duplicate", "slower"], rows)


def _burst(found: Found) -> str:
    burst = found["burst"]
    row = [burst.bad, f"{burst.slowest:.2f} s", f"{burst.memory:.0f} MB", burst.recorded]
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
    """Return the settings and versions that were read back from the run."""
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
    """Write the results into the page, between its two markers."""
    sections = [f"### {name.capitalize()}\n\n{part(name, found)}" for name in _PARTS if name in found]
    sections.insert(0, f"### Targets\n\n{targets(found)}")
    sections.append(f"### Settings and versions\n\n{settings(found)}")
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n\n" + "\n\n".join(sections) + f"\n\n{END}{after}")
