"""Nothing outlives its parent, however that one ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil
import pytest

from tests.servers import wait_until

# The parent starts a child that follows it, tells the child's pid, and waits to be killed.
PARENT = textwrap.dedent("""
    import os, subprocess, sys, time
    reading, writing = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], pass_fds=[reading], stdout=sys.stdout,
                             env={**os.environ, "HEADROOM_PARENT_FD": str(reading)})
    os.close(reading)
    time.sleep(60)
""")

CHILD = textwrap.dedent("""
    import os, sys, time
    sys.platform = {platform!r}
    from app.tether import follow_parent
    follow_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)
""")


@pytest.mark.parametrize("platform", [sys.platform, "anything else"])
def test_a_child_ends_with_a_killed_parent(platform: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD.format(platform=platform)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), what="the child's end")


def test_a_process_that_nobody_started_this_way_follows_nobody() -> None:
    script = "from app.tether import follow_parent; follow_parent(); print('on its own')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "on its own\n"
