"""The defects fit the code: code or tests that move or change are noticed before `make defects` runs."""

from tests.defects.pairs import problems, read_defects
from tests.services.checkout import CHECKOUT


def test_every_defect_fits_the_product_and_its_tests() -> None:
    """Each text occurs once in the product, and each test is defined once."""
    assert read_defects(CHECKOUT)
    assert list(problems(CHECKOUT)) == []
