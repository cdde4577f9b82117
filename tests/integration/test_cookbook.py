"""The redis-cli lines of the docs work as typed and print what the page says. redis-cli itself is not needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.client import CapacityClient
from tests.cookbook import PAGE, PROMPT, connect, lines, masked, run
from tests.indexing import agent_id
from tests.planning import SILENT, fill, numbers, sweep
from tests.servers import start_valkey

README = Path(__file__).parents[2] / "README.md"
LINES = list(lines(PAGE.read_text(encoding="utf-8")))


def test_every_line_prints_what_the_page_says(redis_url: str) -> None:
    fill(redis_url)
    sweep(redis_url)
    with connect(redis_url) as client:
        printed = [run(client, line.command) for line in LINES]
    different = {
        line.command: output
        for line, output in zip(LINES, printed, strict=True)
        if masked(output) != masked(line.output)
    }
    assert not different, "if the page is what is wrong: python -m tests.cookbook"
    assert len(LINES) > 30


def test_the_lines_of_the_readme_work(redis_url: str) -> None:
    commands = re.findall(r"^redis-cli -p 6390 (.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    fill(redis_url)
    with connect(redis_url) as client:
        for command in commands:
            assert not run(client, command).startswith("(error)"), command
    assert commands


def test_the_documented_user_is_enough_for_planners_and_functions() -> None:
    [allow] = [line.command for line in LINES if line.command.startswith("ACL SETUSER planner")]
    with start_valkey() as server:
        fill(server.url)
        with connect(server.url) as client:
            assert run(client, allow) == "OK"
        planner = f"redis://planner:secret@127.0.0.1:{server.port}/0"
        with CapacityClient(planner) as lookups:
            assert numbers(lookups.find(12, 9)) == [4, 3]
            sweep(server.url)
            with connect(server.url) as client:
                client.config_resetstat()
                assert numbers(lookups.find(24, 12, limit=1)) == [4]
                assert "cmdstat_evalsha" not in dict(client.info("commandstats"))
            assert numbers(lookups.find(gpu_type="amd", max_age_s=60)) == [5]
            assert lookups.count(12, 9) == 2
            assert lookups.get(agent_id(SILENT)).gpu_vram_available_gb == 40.0
            assert lookups.find(500, wait_s=0.01) == []
            assert {miss.agent_id for miss in lookups.explain(12, 128).nearest} >= {agent_id(4)}
            assert lookups.explain(12, 8, gpu_type="amd", min_memory_gb=1000).fitting == 0
            assert lookups.fit(12, 8).agents == 3
            assert {row.pool_name for row in lookups.summary()} == {"default", "training"}
            assert next(iter(lookups.events(after="0-0"))).version
        with connect(planner) as client:
            for line in LINES:
                if line.command.startswith("FCALL_RO"):
                    assert run(client, line.command).startswith("(error)") == line.output.startswith("(error)")


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("ECHO 'say \"hi\"\\n'", '"say \\"hi\\"\\\\n"'),
        ("GET nothing", "(nil)"),
        ("STRLEN nothing", "(integer) 0"),
        ("LRANGE nothing 0 -1", "(empty array)"),
        ("NONSENSE", "(error) unknown command 'NONSENSE', with args beginning with: "),
        ('EVAL \'return {1, {"a", {}}, "b"}\' 0', '1) (integer) 1\n2) 1) "a"\n   2) (empty array)\n3) "b"'),
    ],
)
def test_replies_are_printed_as_redis_cli_prints_them(redis_url: str, reply: str, shown: str) -> None:
    with connect(redis_url) as client:
        assert run(client, reply) == shown


def test_a_block_is_read_as_commands_and_their_output() -> None:
    text = f"Ask:\n```console\n{PROMPT}GET a\n(nil)\n{PROMPT}DEL a b\n(integer) 2\n```\n```\n{PROMPT}no\n```\n"
    assert [(line.command, line.output) for line in lines(text)] == [
        ("GET a", "(nil)"),
        ("DEL a b", "(integer) 2"),
    ]
