"""Break each promise in a copy of the checkout, and fail if the tests that must notice still pass.

The defects are in the TOML files beside this one; `pairs.py` explains their tables. Every named test must
fail by an assertion or an error of its own, not because it cannot be collected or set up.

Usage: python -m tests.defects.run [NAME ...]    (default: all; a name may be the beginning of one)
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree as ET

import pytest

from tests.defects.pairs import Checkout, Defect, DefectError, read_defects
from tests.services.checkout import CHECKOUT, copy_checkout

AT_ONCE = 3
"""Defects tried at once; most of them wait for processes at times."""
PATIENCE = 180
"""Timeout of one defect's tests, in seconds."""

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["alembic", "celery", "flask", "httpx", "hypothesis", "psycopg", "pydantic", "pytest", "sqlmodel"]
)
"""Importing the libraries takes longer than most defects' tests, so they are imported once."""


def try_defect(defect: Defect, root: Path) -> None:
    """Break a copy of `root` and run the defect's tests there; DefectError unless each of them fails."""
    with tempfile.TemporaryDirectory(prefix="fs-defect-") as folder:
        copy = Path(folder).resolve() / "checkout"
        copy_checkout(copy, root)
        checkout = Checkout(copy)
        tests = [checkout.resolve(test) for test in defect.tests]
        places = [(checkout.locate(find), find, replace) for find, replace in defect.pairs]
        for file, find, replace in places:
            file.write_text(file.read_text(encoding="utf-8").replace(find, replace), encoding="utf-8")
        check_imports(copy)
        for test, failed in run_tests(tests, copy).items():
            if not failed:
                raise DefectError(f"{test} still passes")


def check_imports(copy: Path) -> None:
    """Make sure that Python imports the copy's packages, not those of an installed or editable checkout."""
    names = ", ".join(sorted(init.parent.name for init in copy.glob("*/__init__.py")))
    ended = subprocess.run(
        [sys.executable, "-c", f"import {names}; print(*(m.__file__ for m in ({names},)), sep='\\n')"],
        cwd=copy,
        env=os.environ | environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    strange = [line for line in ended.stdout.splitlines() if not line.startswith(f"{copy}{os.sep}")]
    if ended.returncode or strange:
        raise DefectError(f"its copy is not what Python imports:\n{ended.stdout}")


def run_tests(tests: list[str], copy: Path) -> dict[str, bool]:
    """Run the tests in the copy; return for each of them whether one of its cases failed."""
    report = copy.parent / "report.xml"
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        # The plugins are imported already, and rewriting their assertions is not needed.
        "-Wignore::pytest.PytestAssertRewriteWarning",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
    ]
    code, output = run_pytest([*options, *tests], copy)
    if code not in (0, 1) or not report.exists():
        raise DefectError(f"pytest exits {code}:\n{output[-3000:]}")
    failed = list(failures(report))
    if not failed and " skipped" in output.splitlines()[-1]:
        raise DefectError(f"its tests were skipped here:\n{output[-1000:]}")
    return {test: any(case == test or case.startswith(f"{test}[") for case in failed) for test in tests}


def run_pytest(arguments: list[str], copy: Path) -> tuple[int, str]:
    """Run pytest in the copy, in a process forked from one that has the libraries; return code and output."""
    log = copy.parent / "output.txt"
    process = FORK.Process(target=in_copy, args=(arguments, copy, log))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise DefectError(f"its tests take longer than {PATIENCE} s")
    return process.exitcode, log.read_text(errors="replace")


def in_copy(arguments: list[str], copy: Path, log: Path) -> NoReturn:
    """Become a pytest process in the copy that can import nothing of this checkout."""
    os.setsid()
    for target in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(copy)
    ours = {init.parent.name for init in copy.glob("*/__init__.py")}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(CHECKOUT)))]
    os.environ.update(environment(copy))
    code = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(code))


def failures(report: Path) -> Iterator[str]:
    """Yield the id of each failed test case; errors in set-up do not count."""
    for case in ET.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None:
            yield f"{case.get('file')}::{case.get('name')}"


def environment(copy: Path) -> dict[str, str]:
    """Return the environment variables that are set for processes in the copy."""
    return {
        "PYTHONPATH": str(copy),
        "GIT_CEILING_DIRECTORIES": str(copy.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def attempt(defect: Defect, root: Path) -> bool:
    """Try one defect, print the result in a line, and return whether it was caught."""
    begun = time.monotonic()
    try:
        try_defect(defect, root)
    except DefectError as error:
        say(f"NOT CAUGHT {defect.name}: {error}")
        return False
    say(f"caught {defect.name} in {time.monotonic() - begun:.0f} s: {defect.promise}")
    return True


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Try the defects; return 1 unless every one was caught, 2 if no defect has such a name."""
    parser = argparse.ArgumentParser(description="Break each promise in a copy; its tests must fail.")
    parser.add_argument("names", nargs="*", help="beginnings of defects' names (default: all)")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="the checkout")
    chosen = parser.parse_args()
    try:
        defects = read_defects(chosen.root)
    except DefectError as error:
        parser.error(str(error))
    wanted = [defect for defect in defects if not chosen.names or defect.name.startswith(tuple(chosen.names))]
    if not wanted:
        parser.error("no defect has a name that begins so")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        caught = list(pool.map(lambda defect: attempt(defect, chosen.root), wanted))
    say(f"{sum(caught)} of {len(caught)} defects caught")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main())
