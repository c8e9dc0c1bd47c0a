"""The pinned requirements, and the wheel alone, are each enough to run the Procfile's three lines."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstseen.admin import user_entry
from tests.conftest import Deploy
from tests.services.checkout import CHECKOUT, copy_checkout
from tests.services.deployment import Deployment
from tests.services.processes import users_environment
from tests.services.valkey import Valkey

pytestmark = pytest.mark.timeout(300)  # a first download may be slow


def run(*argv: str | Path, cwd: Path) -> str:
    """Run a command with the caller's own package index settings; return what it printed."""
    ended = subprocess.run(
        [*map(str, argv)],
        cwd=cwd,
        env=users_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{argv}:\n{ended.stdout}"
    return ended.stdout


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a venv with requirements.txt and nothing else, every hash checked; return its python."""
    folder = tmp_path_factory.mktemp("pinned")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    # Modules are compiled when they are imported, and most never are.
    pins = ["--quiet", "--no-compile", "--require-hashes", "--requirement", CHECKOUT / "requirements.txt"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *pins, cwd=folder)
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a clean copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = copy_checkout(folder / "clone")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", clone, cwd=folder)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture
def installed(tmp_path: Path, pinned: Path, wheel: Path) -> Path:
    """Make a venv with the wheel alone, on top of the pinned venv's packages; return its python."""
    run(pinned, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    below = next((pinned.parents[1] / "lib").glob("python*")) / "site-packages"
    (packages / "below.pth").write_text(f"{below}\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        wheel,
        cwd=tmp_path,
    )
    return python


def check_delivery(deployment: Deployment) -> None:
    """Check that a signed delivery is accepted, its copy is a duplicate, and its handler runs once."""
    first = deployment.deliver("evt_packaged")
    second = deployment.deliver("evt_packaged")
    assert (first.status_code, second.status_code) == (200, 200), first.text
    assert (first.headers.get("Idempotent-Replayed"), second.headers["Idempotent-Replayed"]) == (None, "true")
    deployment.wait_handled(["evt_packaged"])
    assert deployment.handlers.lines() == ["evt_packaged"]


def test_a_checkout_and_its_pins_run(tmp_path: Path, pinned: Path, valkey: Valkey, deploy: Deploy) -> None:
    """With requirements.txt alone, the Procfile's lines run in a clean checkout."""
    clone = copy_checkout(tmp_path / "clone")
    deployment = deploy(
        f"sqlite:///{tmp_path}/events.db", valkey.url, python=pinned, checkout=clone, cwd=clone
    )
    deployment.migrate()
    check_delivery(deployment.start())


def test_a_wheel_runs_elsewhere(tmp_path: Path, installed: Path, valkey: Valkey, deploy: Deploy) -> None:
    """The wheel contains its data and migrations, and its console script migrates."""
    deployment = deploy(f"sqlite:///{tmp_path}/events.db", valkey.url, python=installed)
    deployment.env["PYTHONPATH"] = str(deployment.handlers.folder)
    deployment.env["FIRSTSEEN_USERS"] = user_entry("ada", "correct horse battery")
    where = deployment.run("python -c 'import config, receiver; print(config.__file__, receiver.__file__)'")
    assert str(CHECKOUT) not in where
    deployment.run("firstseen migrate")
    check_delivery(deployment.start())
    page = deployment.client.get(f"{deployment.url}/sign-in")
    files = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page.text)
    assert len(files) >= 4, page.text
    assert {deployment.client.get(f"{deployment.url}{file}").status_code for file in files} == {200}


def test_the_pins_satisfy_the_wheel(installed: Path) -> None:
    """The pins of requirements.txt satisfy the requirements of pyproject.toml."""
    output = run(sys.executable, "-m", "pip", "--python", installed, "check", cwd=installed.parent)
    assert "No broken requirements found" in output


def pins() -> Iterator[str]:
    """Yield the lines of requirements.txt that pin something."""
    return (line for line in (CHECKOUT / "requirements.txt").read_text().splitlines() if "==" in line)


def test_the_pins_name_no_place() -> None:
    """Pins are exact versions with hashes, and name no index and no path."""
    text = (CHECKOUT / "requirements.txt").read_text() + (CHECKOUT / "constraints.txt").read_text()
    assert not [mark for mark in ("://", "--index", "--extra", "--find-links", "file:") if mark in text]
    assert all(line.endswith("\\") for line in pins()), "a pin without a hash"
