"""`python -m firstseen`, and the console script `firstseen`."""

import sys

from firstseen.cli import cli


def main() -> int:
    """Run one command and exit: 0 for done, 1 for no, 2 for misuse or a wrong configuration."""
    cli.main(prog_name="firstseen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
