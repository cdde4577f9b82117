"""`python -m tests.faults`, which `scripts/faults` runs in the project's environment."""

import sys

from tests.faults.command import main

if __name__ == "__main__":
    sys.exit(main())
