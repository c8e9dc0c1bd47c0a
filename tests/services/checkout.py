"""Copies of the checkout as after a fresh clone."""

import shutil
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_CLONED = (
    *(".git", ".venv", ".env", "var", "build", "dist", "*.egg-info"),
    *("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache"),
)


def copy_checkout(target: Path, source: Path = CHECKOUT) -> Path:
    """Copy the checkout without ignored files; return the copy's path."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_CLONED), symlinks=True)
    return target
