"""The commands for people, typed at a real `headroom up` with a small simulated fleet."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pexpect
import pytest
from textual.widgets import DataTable, Input, Static

from app.commands.api import Api
from app.commands.top import Top
from tests.processes import ROOT, Headroom, start_up
from tests.waiting import PATIENCE_S, wait_until, wait_until_async


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="module")
def headroom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headroom]:
    with start_up(tmp_path_factory.mktemp("commands") / "data", "--simulate", "60") as headroom:
        headroom.until_ready().until_printed("60 simulated agents reported")
        wait_until(lambda: len(headroom.get("/api/v1/agents").json()) > 60, what="a recorded fleet")
        yield headroom


def run(headroom: Headroom, *arguments: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "app", *arguments],
        env=environment(headroom.url),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def heed_ctrl_c() -> None:
    """A test run in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    return kept | {"PYTHONPATH": str(ROOT), "HEADROOM_URL": url}


def test_find_lists_what_the_api_finds(headroom: Headroom) -> None:
    expected = headroom.get("/api/v1/agents/available-capacity", min_gpu_vram_gb=8, min_cpu_cores=4).json()
    found = run(headroom, "find", "--vram", "8", "--cores", "4", "--limit", "1000", "--json")
    assert found.status == 0
    assert [one["agent_id"] for one in found.objects] == [one["agent_id"] for one in expected]
    table = run(headroom, "find", "--vram", "8", "--cores", "4", "--limit", "3")
    assert "\x1b" not in table.out
    assert [line.split()[0] for line in table.out.splitlines()[1:]] == [one["agent_id"] for one in expected[:3]]


def test_nothing_found_has_an_exit_status_of_its_own(headroom: Headroom) -> None:
    assert run(headroom, "find", "--vram", "5000").status == 3
    explained = run(headroom, "find", "--vram", "5000", "--explain")
    assert explained.status == 3
    assert "Never possible" in explained.out


def test_explain_and_fit(headroom: Headroom) -> None:
    explained = run(headroom, "explain", "--vram", "8", "--cores", "4", "--json")
    assert explained.status == 0
    assert explained.objects[0]["fitting"] > 0
    fitting = run(headroom, "fit", "--vram", "8", "--cores", "4", "--json")
    assert fitting.objects[0]["agents"] == explained.objects[0]["fitting"]
    assert "tasks fit now" in run(headroom, "fit", "--vram", "8", "--cores", "4").out


def test_pools_add_up(headroom: Headroom) -> None:
    rows = run(headroom, "pools", "--json").objects
    assert sum(row["online"] + row["busy"] + row["offline"] for row in rows) == len(
        headroom.get("/api/v1/agents", limit=1000).json()
    )
    assert "free GB" in run(headroom, "pools").out


def test_cordon_show_uncordon(headroom: Headroom) -> None:
    best = run(headroom, "find", "--limit", "1", "--json").objects[0]["agent_id"]
    done = run(headroom, "cordon", best, "--reason", "[red]disk[/] swap", "--actor", "ops")
    assert done.status == 0, done.err
    assert best not in run(headroom, "find", "--limit", "1000", "--json").out
    wait_until(lambda: "by ops" in run(headroom, "show", best).out, what="the cordon in the record")
    shown = run(headroom, "show", best)
    assert "[red]disk[/] swap" in shown.out
    assert json.loads(run(headroom, "show", best, "--json").out)["cordon"]["actor"] == "ops"
    assert run(headroom, "uncordon", best).status == 0
    assert best in run(headroom, "find", "--limit", "1000", "--json").out


def test_a_whole_pool_is_cordoned_at_once(headroom: Headroom) -> None:
    pool = run(headroom, "find", "--limit", "1", "--json").objects[0]["pool_name"]
    assert run(headroom, "cordon", "--pool", pool, "--reason", "power").status == 0
    assert run(headroom, "find", "--pool", pool).status == 3
    assert run(headroom, "uncordon", "--pool", pool).status == 0
    assert run(headroom, "find", "--pool", pool).status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nobody"), "Invalid agent_id format"),
        (("show", "00000000-0000-4000-8000-000000000000"), "not found"),
        (("cordon", "--reason", "why"), "name one machine"),
        (("find", "--gpu", "voodoo"), "--gpu is one of"),
    ],
)
def test_a_wrong_question_gets_a_clear_answer(
    headroom: Headroom, arguments: tuple[str, ...], message: str
) -> None:
    answer = run(headroom, *arguments)
    assert answer.status in (1, 2)
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_without_an_api_it_says_so() -> None:
    nobody = subprocess.run(
        [sys.executable, "-P", "-m", "app", "pools"],
        env=environment("http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert nobody.returncode == 1
    assert "is `headroom up` running?" in nobody.stderr


def test_events_tell_of_a_cordon_as_it_happens(headroom: Headroom) -> None:
    best = run(headroom, "find", "--limit", "1", "--json").objects[0]["agent_id"]
    listening = pexpect.spawn(
        sys.executable,
        ["-P", "-m", "app", "events", "--kinds", "cordon,uncordon", "--json"],
        env=environment(headroom.url),
        encoding="utf-8",
        timeout=PATIENCE_S,
    )
    try:
        wait_until(lambda: "\nheadroom_listeners 1.0\n" in headroom.get("/metrics").text, what="the listener")
        run(headroom, "cordon", best, "--reason", "heard")
        run(headroom, "uncordon", best)
        listening.expect(best)
    finally:
        listening.close(force=True)


@pytest.mark.parametrize("size", [(24, 80), (50, 160)])
def test_find_watch_shows_the_answer_and_ends_with_ctrl_c(headroom: Headroom, size: tuple[int, int]) -> None:
    watching = pexpect.spawn(
        sys.executable,
        ["-P", "-m", "app", "find", "--vram", "8", "--watch"],
        env=environment(headroom.url) | {"TERM": "xterm-256color"},
        encoding="utf-8",
        dimensions=size,
        preexec_fn=heed_ctrl_c,
        timeout=PATIENCE_S,
    )
    try:
        watching.expect("Ctrl-C ends")
        watching.expect(r"[0-9a-f]{8}-[0-9a-f]{4}")
        watching.sendintr()
        watching.expect(pexpect.EOF)
    finally:
        watching.close(force=True)
    assert watching.exitstatus == 130


COLOUR = r"\x1b\[(?:[0-9]+;)*[349][0-9](?:;[0-9]+)*m"


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_heeded_at_a_terminal(
    headroom: Headroom, variables: dict[str, str], *, coloured: bool
) -> None:
    shown = ""
    kept = {name: value for name, value in environment(headroom.url).items() if name != "NO_COLOR"}
    for arguments in (("find", "--limit", "2"), ("find", "--help")):
        command = shlex.join([sys.executable, "-P", "-m", "app", *arguments])
        shown += str(pexpect.run(command, env=kept | {"TERM": "xterm-256color"} | variables, encoding="utf-8"))
    assert "Usage" in shown
    assert bool(re.search(COLOUR, shown)) is coloured


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_top_sorts_filters_and_cordons(headroom: Headroom, size: tuple[int, int]) -> None:
    with Api(headroom.url) as api:
        app = Top(api, actor="pilot", every_s=0.5)
        async with app.run_test(size=size) as pilot:
            table = app.query_one(DataTable)
            await wait_until_async(lambda: table.row_count > 60, what="a full table")

            def column(name: str) -> list[str]:
                return [str(value) for value in table.get_column(name)]

            await pilot.press("n")
            cores = [int(value) for value in column("cores")]
            assert cores == sorted(cores, reverse=True)
            await pilot.press("v")
            vram = [float(value) for value in column("VRAM")]
            assert vram == sorted(vram, reverse=True)

            host = column("host")[0]
            await pilot.press("slash")
            app.query_one("#filter", Input).value = host
            await pilot.press("enter")
            await pilot.pause()
            assert set(column("host")) == {host}
            assert f"1 of {len(vram)}" in str(app.query_one("#totals", Static).content)

            await pilot.press("c")
            await pilot.pause()
            await pilot.press(*"disk", "enter")
            await wait_until_async(lambda: "cordoned" in column("status")[0], what="the cordon in the table")
            await pilot.press("c")
            await wait_until_async(lambda: "cordoned" not in column("status")[0], what="the end of the cordon")
