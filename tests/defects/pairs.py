"""The defects as data: the text of the product that each one replaces, and the tests that must notice.

A defect is a table of a TOML file in this folder:

    [lease-not-renewed]
    promise = "A handler that works for longer than a lease keeps its claim."
    find = "lost = renew(self.store, [held.claim for held in young], lease=self.limits.lease)"
    replace = "lost: set[UUID] = set()"
    tests = ["test_worker.py::test_renewal_keeps_a_claim[sqlite]"]

`find` names no file: it must occur exactly once in the product, so that code can move between files. A defect
with several changes has further `find` and `replace` pairs under `[[lease-not-renewed.also]]`. A test is
named by its file without the folder, so that test files can move too.
"""

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any


class DefectError(Exception):
    """A defect was not caught, or could not be tried; the message is one sentence."""


@dataclass(frozen=True)
class Defect:
    """One broken promise: the (find, replace) pairs that break it and the tests that must notice."""

    name: str
    promise: str
    pairs: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


class Checkout:
    """The product files that defects change and the tests that they name, under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def product(self) -> dict[Path, str]:
        """The text of every Python and TOML file in the product's packages."""
        packages = [init.parent for init in self.root.glob("*/__init__.py") if init.parent.name != "tests"]
        files = (
            file for package in packages for suffix in ("py", "toml") for file in package.rglob(f"*.{suffix}")
        )
        return {file: file.read_text(encoding="utf-8") for file in sorted(files)}

    def locate(self, find: str) -> Path:
        """Return the product file that contains the text; DefectError unless it occurs exactly once."""
        places = [file for file, text in self.product.items() for _ in range(text.count(find))]
        if len(places) != 1:
            where = ", ".join(str(file.relative_to(self.root)) for file in places) or "nowhere"
            raise DefectError(f"this text must occur once but occurs {len(places)} times ({where}):\n{find}")
        return places[0]

    def resolve(self, test: str) -> str:
        """Return pytest's id of `test_file.py::test_name[case]`, which has the file's folder in front."""
        name, _, case = test.partition("::")
        function = re.compile(rf"^def {re.escape(case.partition('[')[0])}\(", re.MULTILINE)
        files = [file for file in self._test_files.get(name, []) if function.search(file.read_text("utf-8"))]
        if len(files) != 1:
            raise DefectError(f"{test} must be defined in one test file but is in {len(files)}")
        return f"{files[0].relative_to(self.root)}::{case}"

    @cached_property
    def _test_files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in (self.root / "tests").rglob("test_*.py"):
            found.setdefault(file.name, []).append(file)
        return found


def read_defects(root: Path) -> list[Defect]:
    """Return every defect of a checkout; DefectError if one lacks a part or two have the same name."""
    defects: dict[str, Defect] = {}
    for file in sorted((root / "tests" / "defects").glob("*.toml")):
        for name, table in tomllib.loads(file.read_text(encoding="utf-8")).items():
            if name in defects:
                raise DefectError(f"two defects are named {name}")
            try:
                defects[name] = _defect(name, table)
            except KeyError as error:
                raise DefectError(f"{name} has no {error}") from None
    return list(defects.values())


def _defect(name: str, table: dict[str, Any]) -> Defect:
    pairs = tuple((pair["find"], pair["replace"]) for pair in (table, *table.get("also", ())))
    return Defect(name, table["promise"], pairs, tuple(table["tests"]))


def problems(root: Path) -> Iterator[str]:
    """Yield a sentence for each text that does not occur once and each test that is not defined once."""
    checkout = Checkout(root)
    for defect in read_defects(root):
        looks: list[Callable[[], object]] = [partial(checkout.locate, find) for find, _ in defect.pairs]
        looks += [partial(checkout.resolve, test) for test in defect.tests]
        for look in looks:
            try:
                look()
            except DefectError as error:
                yield f"{defect.name}: {error}"
