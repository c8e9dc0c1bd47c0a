"""The runner of defects: it must itself notice when a defect is not noticed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.checkout import CHECKOUT

DEFECT = """[dearer]
promise = "It costs 1."
find = "PRICE = {before}"
replace = "PRICE = 2"
tests = {tests}
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a small project of one package, one test file, and a folder for defects."""
    for folder in ("shop", "tests/defects"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("PRICE = 1\n")
    (tmp_path / "tests" / "test_shop.py").write_text(TESTS)
    return tmp_path


def run(checkout: Path, *tests: str, before: int = 1) -> tuple[int, str]:
    """Run the runner on one defect; return its exit code and what it prints."""
    defect = DEFECT.format(tests=list(tests), before=before)
    (checkout / "tests" / "defects" / "shop.toml").write_text(defect)
    argv = [sys.executable, "-m", "tests.defects.run", "--root", str(checkout)]
    ended = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_defect_is_caught(checkout: Path) -> None:
    """When the named test fails on the broken copy all is well, and the checkout itself is untouched."""
    code, said = run(checkout, "test_shop.py::test_price")
    assert (code, "caught dearer" in said, "1 of 1 defects caught" in said) == (0, True, True), said
    assert (checkout / "shop" / "__init__.py").read_text() == "PRICE = 1\n"


def test_further_pairs_are_applied_too(checkout: Path) -> None:
    """A defect of several changes is caught where only the last one breaks something."""
    (checkout / "shop" / "prices.toml").write_text("price = 3\n")
    (checkout / "tests" / "test_file.py").write_text(FILE_TEST)
    also = 'find = "price = 3"\nreplace = "price = 4"\n'
    (checkout / "tests" / "defects" / "more.toml").write_text(
        DEFECT.format(tests=["test_file.py::test_file"], before=1).replace("[dearer]", "[more]")
        + f"[[more.also]]\n{also}"
    )
    code, said = run(checkout, "test_shop.py::test_price")
    assert (code, "2 of 2 defects caught" in said) == (0, True), said


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (["test_shop.py::test_nothing"], "test_nothing still passes"),
        (["test_shop.py::test_price", "test_shop.py::test_nothing"], "test_nothing still passes"),
        (["test_shop.py::test_set_up"], "test_set_up still passes"),
        (["test_shop.py::test_price[7]"], "pytest exits 4"),
    ],
)
def test_a_defect_is_not_caught(checkout: Path, tests: list[str], reason: str) -> None:
    """A test that passes, cannot be set up, or has no such case notices nothing."""
    code, said = run(checkout, *tests)
    assert (code, reason in said) == (1, True), said


def test_a_defect_that_does_not_fit_fails(checkout: Path) -> None:
    """The product moved on and the defect did not: somebody must look."""
    code, said = run(checkout, "test_shop.py::test_price", before=7)
    assert (code, "NOT CAUGHT dearer" in said, "occurs 0 times" in said) == (1, True, True), said
