"""`headroom`, and `python -m app`: hands over to the agent or to the command line."""

from __future__ import annotations

import os
import sys

from app.errors import HeadroomError, StartupRefusedError
from app.tether import follow_parent


def main() -> None:
    """Ends with 0, 1 (a server is away, or nobody reads on), 2 (wrong usage), 78 (cannot work like this) or 130
    (Ctrl-C).
    """
    follow_parent()
    try:
        if sys.argv[1:2] == ["agent"]:
            # The agent lives on machines that people use for other things: it loads no more than it needs.
            from workers.host_agent.command import run

            status = run(sys.argv[2:])
            sys.stdout.flush()
            sys.exit(status)
        from app.cli import app

        app(prog_name="headroom")
    except HeadroomError as error:
        sys.stderr.write(f"headroom: {error.detail}\n")
        sys.exit(os.EX_CONFIG if isinstance(error, StartupRefusedError) else 1)
    except BrokenPipeError:
        # As in `headroom … | head`. What is left to write at the exit must not meet the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
