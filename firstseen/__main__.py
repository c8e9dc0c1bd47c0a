"""`python -m firstseen`, and the console script `firstseen`."""

import sys
from pathlib import Path

from firstseen.cli import cli


def main() -> int:
    """Run one command and exit: 0 for done, 1 for no, 2 for misuse or a wrong configuration."""
    # As `python -m` does and a console script does not: verifiers and handlers of the user may stand here.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    cli.main(prog_name="firstseen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
