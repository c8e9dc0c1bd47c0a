"""The runner of defects reports every defect that its tests do not notice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.checkout import CHECKOUT

DEFECTS = """
[caught]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_shop.py::test_price"]

[caught_by_its_second_pair]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_file.py::test_file"]
[[caught_by_its_second_pair.also]]
find = "price = 3"
replace = "price = 4"

[unnoticed]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_shop.py::test_nothing"]

[half_noticed]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_shop.py::test_price", "test_shop.py::test_nothing"]

[not_set_up]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_shop.py::test_set_up"]

[without_such_a_case]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_shop.py::test_price[7]"]

[that_does_not_fit]
promise = "It costs 7."
find = "PRICE = 7"
replace = "PRICE = 2"
tests = ["test_shop.py::test_price"]
"""
TESTS = """import pytest, shop

def test_price():
    assert shop.PRICE == 1

def test_nothing():
    assert shop.PRICE

@pytest.fixture
def broken():
    assert shop.PRICE == 1

def test_set_up(broken):
    pass
"""

FILE_TEST = """from pathlib import Path

import shop

def test_file():
    assert "4" not in Path(shop.__file__).with_name("prices.toml").read_text()
"""


Ended = tuple[int, str]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small project of one package, two test files, and defects of every kind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("shop", "tests/defects"):
        (folder / name).mkdir(parents=True)
    (folder / "shop" / "__init__.py").write_text("PRICE = 1\n")
    (folder / "shop" / "prices.toml").write_text("price = 3\n")
    (folder / "tests" / "test_shop.py").write_text(TESTS)
    (folder / "tests" / "test_file.py").write_text(FILE_TEST)
    (folder / "tests" / "defects" / "shop.toml").write_text(DEFECTS)
    return folder


def run(checkout: Path, *names: str) -> Ended:
    """Run the runner; return its exit code and output."""
    argv = [sys.executable, "-m", "tests.defects.run", "--root", str(checkout), *names]
    ended = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def everything(checkout: Path) -> Ended:
    """Run all defects of the small project."""
    return run(checkout)


def test_defects_are_caught(checkout: Path) -> None:
    """If every named test fails on the broken copy the exit code is 0, and the checkout is unchanged."""
    code, output = run(checkout, "caught")
    assert (code, "2 of 2 defects caught" in output) == (0, True), output
    assert (checkout / "shop" / "__init__.py").read_text() == "PRICE = 1\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unnoticed", "test_nothing still passes"),
        ("half_noticed", "test_nothing still passes"),
        ("not_set_up", "test_set_up still passes"),
        ("without_such_a_case", "pytest exits 4"),
        ("that_does_not_fit", "occurs 0 times"),
    ],
)
def test_a_defect_is_not_caught(everything: Ended, name: str, reason: str) -> None:
    """A named test that passes, fails in set-up or does not exist is reported, and so is a missing text."""
    code, output = everything
    assert (code, "2 of 7 defects caught" in output) == (1, True), output
    verdict = re.search(
        rf"^NOT CAUGHT {name}: (.*?)(?=^NOT CAUGHT|^caught|^\d of)", output, re.DOTALL | re.MULTILINE
    )
    assert verdict, output
    assert reason in verdict[1], output
