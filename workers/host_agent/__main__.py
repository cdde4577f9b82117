"""`python -m workers.host_agent`: the agent without the rest of the command line."""

import sys

from workers.host_agent.command import run

sys.exit(run(sys.argv[1:]))
