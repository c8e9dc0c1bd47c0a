"""The runner of defects: it must itself notice when a defect is not noticed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.checkout import CHECKOUT

PATCH = """promise: {promise}
tests: {tests}
--- a/shop/__init__.py
+++ b/shop/__init__.py
@@ -1 +1 @@
-PRICE = {before}
+PRICE = 2
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a small project of one package, one test file, and a folder for defects."""
    for folder in ("shop", "tests/defects"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("PRICE = 1\n")
    (tmp_path / "tests" / "test_shop.py").write_text(TESTS)
    return tmp_path


def run(checkout: Path, tests: str, *, promise: str = "It costs 1.", before: int = 1) -> tuple[int, str]:
    """Run the runner on one defect; return its exit code and what it prints."""
    patch = PATCH.format(promise=promise, tests=tests, before=before)
    (checkout / "tests" / "defects" / "01-dearer.patch").write_text(patch)
    argv = [sys.executable, "-m", "tests.defects.run", "--root", str(checkout)]
    ended = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_defect_is_caught(checkout: Path) -> None:
    """When the named test fails on the broken copy all is well, and the checkout itself is untouched."""
    code, said = run(checkout, "tests/test_shop.py::test_price")
    assert (code, "caught 01-dearer" in said, "1 of 1 defects caught" in said) == (0, True, True), said
    assert (checkout / "shop" / "__init__.py").read_text() == "PRICE = 1\n"


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("tests/test_shop.py::test_nothing", "test_nothing still passes"),
        ("tests/test_shop.py::test_price tests/test_shop.py::test_nothing", "test_nothing still passes"),
        ("tests/test_shop.py::test_gone", "pytest exits 4"),
        ("tests/test_shop.py::test_set_up", "test_set_up still passes"),
        ("", "needs a `promise:` and a `tests:` line"),
    ],
)
def test_a_defect_is_not_caught(checkout: Path, tests: str, reason: str) -> None:
    """A test that passes, is missing, or cannot be set up notices nothing."""
    code, said = run(checkout, tests)
    assert (code, reason in said) == (1, True), said


def test_a_patch_that_no_longer_applies_fails(checkout: Path) -> None:
    """The product moved on and the patch did not: somebody must look."""
    code, said = run(checkout, "tests/test_shop.py::test_price", before=7)
    assert (code, "does not apply" in said) == (1, True), said
