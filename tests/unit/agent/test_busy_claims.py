"""Busy or not, and which claims are running."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.models.heartbeat import RunningClaim
from tests.children import children
from tests.servers import wait_until
from workers.host_agent.busy import BusyCheck
from workers.host_agent.claims_dir import ClaimsDir
from workers.host_agent.clock import SystemClock
from workers.host_agent.probes.devices import Device


def test_a_flag_file_makes_busy(tmp_path: Path) -> None:
    check = BusyCheck(tmp_path / "busy", "")
    assert not check.busy()
    (tmp_path / "busy").touch()
    assert check.busy()
    (tmp_path / "busy").unlink()
    assert not check.busy()


@pytest.mark.parametrize(("command", "busy"), [("true", True), ("false", False), ("test -e /", True)])
def test_a_command_decides(tmp_path: Path, command: str, *, busy: bool) -> None:
    assert BusyCheck(tmp_path / "busy", command).busy() is busy


@pytest.mark.parametrize("trouble", ["exit 2", "no-such-program", "kill -9 $$", "sleep 1000"])
@pytest.mark.parametrize("before", [True, False])
def test_no_answer_leaves_the_last_one(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture, *, before: bool
) -> None:
    broken = tmp_path / "broken"
    answer = "true" if before else "false"
    check = BusyCheck(tmp_path / "busy", f"if test -e {broken}; then {trouble}; else {answer}; fi", deadline_s=0.3)
    assert check.busy() is before
    broken.touch()
    with caplog.at_level(logging.WARNING):
        assert [check.busy(), check.busy()] == [before, before]
    assert len(caplog.records) == 1, "said once, not at every heartbeat"
    assert children() == []


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A claim's process that uses about 64 MiB and one core."""
    code = "held = bytearray(64 << 20)\nprint('up', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_running_claim_says_what_it_uses(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    claims = ClaimsDir(tmp_path, SystemClock())
    assert not claims.pending()
    (tmp_path / "claim-1").write_text(f"{worker.pid}\n")
    assert claims.pending()
    device = Device("nvidia", 0, "", "", 8192, 0, used_by_pid={str(worker.pid): 3072, "1": 5})
    first = claims.read([device])[0]
    assert (first.claim_id, first.gpu_vram_gb, first.cpu_cores) == ("claim-1", 3.0, 0)
    assert 0.06 <= first.memory_gb < 0.5
    used = psutil.Process(worker.pid).cpu_times().user
    wait_until(lambda: psutil.Process(worker.pid).cpu_times().user > used + 0.5, what="half a second of work")
    # Nothing has been on the machine's other core for it, so on a crowded one it may get less than a whole one.
    assert claims.read([])[0].cpu_cores in (0, 1)


def test_children_of_the_process_count_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'held = bytearray(64 << 20); input()'])\n"
        "print('up', flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        (tmp_path / "claim-1").write_text(f'{{"pid": {process.pid}, "planner": "x"}}')
        claims = ClaimsDir(tmp_path, SystemClock())
        wait_until(lambda: claims.read([])[0].memory_gb >= 0.06, what="the child's memory")
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()


def test_what_is_no_running_claim_is_left_out(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    files = {
        "gone": str(gone.pid),
        "empty": "",
        "text": "hello",
        "json": '{"pid": "4"}',
        "huge": "9" * 400,
        "negative": "-1",
        "binary": "\0\0",
        ".hidden": str(worker.pid),
        "with space": str(worker.pid),
        "editor~": str(worker.pid),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "reused").write_text(str(worker.pid))
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "reused", (an_hour_ago, an_hour_ago))
    assert ClaimsDir(tmp_path, SystemClock()).read([]) == ()


def test_without_the_folder_there_are_no_claims(tmp_path: Path) -> None:
    claims = ClaimsDir(tmp_path / "missing", SystemClock())
    assert not claims.pending()
    assert claims.read([]) == ()


def test_a_claim_that_ends_is_gone_from_the_next_heartbeat(
    tmp_path: Path, worker: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "claim-1").write_text(str(worker.pid))
    claims = ClaimsDir(tmp_path, SystemClock())
    assert [claim.claim_id for claim in claims.read([])] == ["claim-1"]
    worker.kill()
    worker.wait()
    assert claims.read([]) == ()
    assert RunningClaim(claim_id="claim-1") not in claims.read([])


def test_a_busy_file_out_of_reach_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Too long a name is refused to root as well, whom no folder keeps out.
    check = BusyCheck(tmp_path / ("x" * 300), "true")
    with caplog.at_level(logging.WARNING):
        assert [check.busy(), check.busy()] == [True, True], "the command still counts"
    assert len(caplog.records) == 1


def test_a_named_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "claim-1")
    assert ClaimsDir(tmp_path, SystemClock()).read([]) == ()


def test_a_claim_outlives_a_jump_of_the_clock(
    tmp_path: Path, worker: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claim-1").write_text(str(worker.pid))
    claims = ClaimsDir(tmp_path, SystemClock())
    assert len(claims.read([])) == 1
    an_hour_later = psutil.Process(worker.pid).create_time() + 3600
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: an_hour_later)
    assert len(claims.read([])) == 1
    assert ClaimsDir(tmp_path, SystemClock()).read([]) == (), "a file never seen before is another's"


def test_a_claim_whose_process_is_gone_stays_gone_though_its_number_is_used_again(
    tmp_path: Path, worker: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a backward step of the clock the later process looks older than the file."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    file = tmp_path / "claim-1"
    file.write_text(str(gone.pid))
    claims = ClaimsDir(tmp_path, SystemClock())
    assert claims.read([]) == ()

    class Renumbered(psutil.Process):
        def __init__(self, pid: int | None = None) -> None:
            super().__init__(worker.pid if pid == gone.pid else pid)

    monkeypatch.setattr(psutil, "Process", Renumbered)
    assert ClaimsDir(tmp_path, SystemClock()).read([]) != (), "one who never saw it gone cannot know"
    assert claims.read([]) == ()
    file.write_text(f"{gone.pid} ")
    an_hour_later = time.time() + 3600
    os.utime(file, (an_hour_later, an_hour_later))
    assert [claim.claim_id for claim in claims.read([])] == ["claim-1"], "written anew, it is judged anew"


def started_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_claim_that_says_when_its_process_started_needs_no_clock(
    tmp_path: Path, worker: subprocess.Popen[bytes]
) -> None:
    file = tmp_path / "claim-1"
    right = started_ticks(worker.pid)
    for started, found in ((right, True), (right - 1, False)):
        file.write_text(f'{{"pid": {worker.pid}, "started": {started}}}')
        for written_s in (0, time.time(), time.time() + 1e6):
            os.utime(file, (written_s, written_s))
            assert bool(ClaimsDir(tmp_path, SystemClock()).read([])) is found


def test_a_claim_that_is_being_written_anew_stands(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    (tmp_path / "claim-1").write_text(str(worker.pid))
    claims = ClaimsDir(tmp_path, SystemClock())
    assert len(claims.read([])) == 1
    (tmp_path / "claim-1").write_text("")
    assert len(claims.read([])) == 1
    (tmp_path / "claim-1").write_text(str(worker.pid))
    assert len(claims.read([])) == 1
