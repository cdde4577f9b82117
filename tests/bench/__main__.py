"""`python -m tests.bench`, which `scripts/bench` runs in the project's environment."""

import sys

from tests.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
