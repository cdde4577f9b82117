"""The docstrings of the client are its manual: every example in them runs, against the fleet they speak of."""

from __future__ import annotations

import doctest
import inspect

import pytest

import app.client
from app.client import AsyncCapacityClient, CapacityClient
from tests.planning import api, fill, sweep
from tests.waiting import PATIENCE_S

_FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {
    example.name: example
    for thing, name in (
        (inspect.getmodule(app.client), "app.client"),
        (CapacityClient, "CapacityClient"),
        (AsyncCapacityClient, "AsyncCapacityClient"),
    )
    for example in _FINDER.find(thing, name)
    if example.examples
}


def test_every_question_has_an_example() -> None:
    assert {"app.client", "AsyncCapacityClient", *(f"CapacityClient.{call}" for call in CALLS)} <= set(EXAMPLES)


CALLS = ("find", "search", "count", "get", "explain", "fit", "summary", "events")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_do_what_they_say(name: str, redis_url: str, sqlite_record_url: str) -> None:
    fill(redis_url)
    sweep(redis_url)
    with api(redis_url, sqlite_record_url) as api_url, CapacityClient(redis_url, timeout_s=PATIENCE_S) as client:
        test = EXAMPLES[name]
        for example in test.examples:
            for documented, real in (("redis://127.0.0.1:6390", redis_url), ("http://127.0.0.1:8000", api_url)):
                example.source = example.source.replace(documented, real)
        test.globs = {**vars(app.client), "client": client}
        told: list[str] = []
        outcome = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(test, out=told.append)
    assert not outcome.failed, "".join(told)
    assert outcome.attempted
