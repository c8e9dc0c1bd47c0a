"""The defects of tests/defects match the code; changed code and renamed tests are noticed at once."""

from pathlib import Path

import pytest

from tests.defects.pairs import Checkout, DefectError, problems, read_defects
from tests.services.checkout import CHECKOUT

DEFECT = """
[dearer]
promise = "It costs 1."
find = "PRICE = 1"
replace = "PRICE = 2"
tests = ["test_shop.py::test_price[1]"]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a small project with one package, one test file and one defect."""
    for folder in ("shop", "tests/unit", "tests/defects"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("PRICE = 1\n")
    (tmp_path / "tests" / "unit" / "test_shop.py").write_text("def test_price(price):\n    pass\n")
    (tmp_path / "tests" / "defects" / "shop.toml").write_text(DEFECT)
    return tmp_path


def test_every_defect_fits_the_product_and_its_tests() -> None:
    """Each text occurs once in the product, and each test is defined once."""
    assert read_defects(CHECKOUT)
    assert list(problems(CHECKOUT)) == []


def test_texts_and_tests_are_found_in_any_folder(checkout: Path) -> None:
    found = Checkout(checkout)
    assert list(problems(checkout)) == []
    assert found.locate("PRICE = 1") == checkout / "shop" / "__init__.py"
    assert found.resolve("test_shop.py::test_price[1]") == "tests/unit/test_shop.py::test_price[1]"


def test_a_missing_text_is_a_problem(checkout: Path) -> None:
    """The product changed and the defect did not."""
    (checkout / "shop" / "__init__.py").write_text("PRICE = 7\n")
    (problem,) = problems(checkout)
    assert problem == "dearer: this text must occur once but occurs 0 times (nowhere):\nPRICE = 1"


def test_a_text_that_occurs_twice_is_a_problem(checkout: Path) -> None:
    (checkout / "shop" / "more.toml").write_text("PRICE = 10\n")
    (problem,) = problems(checkout)
    assert "occurs 2 times (shop/__init__.py, shop/more.toml)" in problem


def test_a_missing_test_is_a_problem(checkout: Path) -> None:
    """It was renamed in its file only."""
    (checkout / "tests" / "unit" / "test_shop.py").write_text("def test_price_of_all():\n    pass\n")
    (problem,) = problems(checkout)
    assert problem == "dearer: test_shop.py::test_price[1] must be defined in one test file but is in 0"


def test_a_test_that_is_defined_twice_is_a_problem(checkout: Path) -> None:
    """Two files may share a name if only one of them defines the test."""
    other = checkout / "tests" / "test_shop.py"
    other.write_text("def test_other():\n    pass\n")
    assert list(problems(checkout)) == []
    other.write_text("def test_price():\n    pass\n")
    (problem,) = problems(checkout)
    assert problem.endswith("is in 2")


@pytest.mark.parametrize("part", ["promise", "find", "replace", "tests"])
def test_a_defect_that_lacks_a_part_is_refused(checkout: Path, part: str) -> None:
    kept = [line for line in DEFECT.splitlines() if not line.startswith(part)]
    (checkout / "tests" / "defects" / "shop.toml").write_text("\n".join(kept))
    with pytest.raises(DefectError, match=f"dearer has no '{part}'"):
        read_defects(checkout)


def test_two_defects_of_one_name_are_refused(checkout: Path) -> None:
    (checkout / "tests" / "defects" / "more.toml").write_text(DEFECT)
    with pytest.raises(DefectError, match="two defects are named dearer"):
        read_defects(checkout)
