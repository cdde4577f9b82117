"""What the README tells people to type works as typed, and answers in the form that it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.processes import ROOT, Headroom, start_up
from tests.waiting import PATIENCE_S, wait_until

README = (ROOT / "README.md").read_text(encoding="utf-8")

# Stand-ins for two programs that a machine under test need not have.
CURL = """
import sys, httpx
method, headers, data, url, show, stream = "", {}, None, "", False, False
arguments = iter(sys.argv[1:])
for argument in arguments:
    if argument == "-i": show = True
    elif argument == "-N": stream = True
    elif argument == "-X": method = next(arguments)
    elif argument == "-d": data = next(arguments).encode()
    elif argument == "-H": headers.update([next(arguments).split(": ", 1)])
    elif argument.startswith("http"): url = argument
    else: sys.exit(f"curl: unknown argument {argument}")
method = method or ("GET" if data is None else "POST")
if stream:
    with httpx.stream(method, url, headers=headers, trust_env=False) as answer:
        print(next(answer.iter_text()))
    sys.exit(0 if answer.is_success else 22)
answer = httpx.request(method, url, headers=headers, content=data, trust_env=False)
if show:
    print("HTTP/1.1", answer.status_code, answer.reason_phrase)
    print(*(f"{name}: {value}" for name, value in answer.headers.items()), "", sep="\\n")
print(answer.text)
sys.exit(0 if answer.is_success else 22)
"""
REDIS_CLI = """
import sys, redis
assert sys.argv[1] == "-p"
def show(reply):
    for item in reply if isinstance(reply, (list, tuple)) else [reply]:
        show(item) if isinstance(item, (list, tuple)) else print(item)
client = redis.Redis(port=int(sys.argv[2]), decode_responses=True, protocol=2)
reply = client.execute_command(*sys.argv[3:])
show([part for pair in reply.items() for part in pair] if isinstance(reply, dict) else reply)
"""


PROGRAMS = ("curl", "redis-cli", "comm", ".venv/bin/headroom")


class Example(NamedTuple):
    """A block to type, and the block of output that follows it, if there is one."""

    typed: str
    shown: str

    @property
    def name(self) -> str:
        return self.typed.splitlines()[0][:60]


def examples(text: str) -> list[Example]:
    """All blocks that begin with a program of PROGRAMS, in the order of the page."""
    blocks = list(re.finditer(r"^```(\w*)\n(.*?)^```\n", text, re.MULTILINE | re.DOTALL))
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "" and block[2].startswith(PROGRAMS):
            directly = following is not None and not text[block.end() : following.start()].strip()
            shown = following[2] if following is not None and directly else ""
            found.append(Example(block[2], "" if shown.startswith(PROGRAMS) else shown))
    return found


EXAMPLES = examples(README)


class Page(NamedTuple):
    """The README against a running Headroom."""

    headroom: Headroom
    redis_port: str
    programs: Path
    data_dir: Path

    def run(self, typed: str, *program: str) -> subprocess.CompletedProcess[str]:
        text = typed.replace("http://127.0.0.1:8000", self.headroom.url).replace("6390", self.redis_port)
        text = text.replace(".venv/bin/headroom", f"{sys.executable} -P -m app")
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [*program, text],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env={
                "PATH": path,
                "PYTHONPATH": str(ROOT),
                "HEADROOM_DATA_DIR": str(self.data_dir),
                "HEADROOM_URL": self.headroom.url,
            },
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    programs = tmp_path_factory.mktemp("programs")
    for name, source in {"curl": CURL, "redis-cli": REDIS_CLI}.items():
        (programs / f"{name}.py").write_text(source)
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{programs / name}.py" "$@"\n')
        (programs / name).chmod(0o755)
    data_dir = tmp_path_factory.mktemp("readme") / "data"
    with start_up(data_dir, "--simulate", "200") as headroom:
        headroom.until_ready().until_printed("200 simulated agents reported").until_printed("redis-cli")
        port = re.search(r"redis-cli -p (\d+)", headroom.output)
        assert port is not None
        yield Page(headroom, port[1], programs, data_dir)


def shape(value: Any) -> Any:
    """What kind of JSON it is, without its values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return float if isinstance(value, int | float) else type(value)


def test_the_page_has_examples_of_every_kind() -> None:
    assert sum(example.typed.startswith("curl") for example in EXAMPLES) >= 9
    assert sum("redis-cli" in example.typed for example in EXAMPLES) >= 3
    assert sum(bool(example.shown) for example in EXAMPLES) >= 8


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_what_is_typed_works_and_answers_in_the_form_shown(page: Page, example: Example) -> None:
    """In the order of the page: later examples ask for what earlier ones reported."""

    def works() -> bool:
        done = page.run(example.typed, "bash", "-euo", "pipefail", "-c")
        # A heartbeat shows in searches within milliseconds of its 202, in the record within a second.
        return done.returncode == 0 and matches(done.stdout, example.shown)

    wait_until(works, what=f"{example.typed} -> {example.shown}")


def matches(answered: str, shown: str) -> bool:
    if not shown:
        return True
    if not shown.startswith(("HTTP/", "{", "[")):
        return len(answered.split("\n")) == len(shown.split("\n")) and len(answered.split()) == len(shown.split())
    if not shown.startswith("HTTP/"):
        return bool(shape(json.loads(answered)) == shape(json.loads(shown)))
    head, _, body = answered.partition("\n\n")
    shown_head, _, shown_body = shown.partition("\n\n")
    names = {line.partition(":")[0] for line in shown_head.splitlines()}
    assert names <= {line.partition(":")[0] for line in head.splitlines()}
    return matches(body, shown_body)


def test_the_rung_and_the_two_plain_sets_name_the_same_agents(page: Page) -> None:
    rung, plain = (example for example in EXAMPLES if "12 +inf" in example.typed)

    def ids(example: Example) -> set[str]:
        return set(page.run(example.typed, "bash", "-euo", "pipefail", "-c").stdout.split())

    wait_until(lambda: ids(rung) == ids(plain) and len(ids(rung)) > 5, what="the same agents")


def test_the_python_example_runs(page: Page) -> None:
    source = re.search(r"^```python\n(.*?)^```\n", README, re.MULTILINE | re.DOTALL)
    assert source is not None
    done = page.run(source[1], sys.executable, "-c")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 3
    assert len(done.stdout.splitlines()) == 4


def test_the_lines_of_python_for_planners_run(page: Page) -> None:
    text = (ROOT / "docs" / "planners.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```\n", text, re.MULTILINE | re.DOTALL)
    done = page.run("".join(blocks), sys.executable, "-c")
    assert done.returncode == 0, done.stderr
    assert len(blocks) >= 4
    assert len(done.stdout.splitlines()) == 3 + 2 + 1


def test_the_calls_of_the_pages_work_and_answer_in_the_form_shown(page: Page) -> None:
    """One after the other: later calls ask for what earlier ones made, under the ids of this run."""
    made: dict[str, str] = {}
    calls = 0
    for name in ("http.md", "planners.md", "dashboard.md", "operations.md"):
        for example in examples((ROOT / "docs" / name).read_text(encoding="utf-8")):
            if not example.typed.startswith("curl"):
                continue
            typed = example.typed
            for shown, real in made.items():
                typed = typed.replace(shown, real)
            done = page.run(typed, "bash", "-euo", "pipefail", "-c")
            assert done.returncode == 0, f"{name}: {typed} -> {done.stdout}"
            calls += 1
            if example.shown.startswith(("{", "[")) and example.typed.count("curl ") == 1:
                answered, shown_answer = json.loads(done.stdout), json.loads(example.shown)
                assert has_form(answered, shown_answer), f"{name}: {typed} -> {done.stdout}"
                made |= renamed(shown_answer, answered)
    assert calls > 25


def has_form(answered: Any, shown: Any) -> bool:
    """Whether an answer has the fields and types of the one shown; null, and a list without items, go with all."""
    if answered is None or shown is None:
        return True
    if isinstance(shown, dict):
        return (
            isinstance(answered, dict)
            and answered.keys() == shown.keys()
            and all(has_form(answered[key], shown[key]) for key in shown)
        )
    if isinstance(shown, list):
        return isinstance(answered, list) and (not answered or not shown or has_form(answered[0], shown[0]))
    return bool(shape(answered) == shape(shown))


def renamed(shown: Any, answered: Any) -> dict[str, str]:
    """The ids of plans and tasks that were shown, with those that they have in this run."""
    if isinstance(shown, list):
        return {k: v for pair in zip(shown, answered, strict=False) for k, v in renamed(*pair).items()}
    if not isinstance(shown, dict):
        return {}
    ids = {shown[key]: answered[key] for key in ("plan_id", "task_id") if key in shown}
    return ids | {k: v for key in shown for k, v in renamed(shown[key], answered[key]).items()}
