"""What `headroom top` shows of an agent stays text, whatever its host is called."""

from __future__ import annotations

import pytest

from app.commands.top import _text


@pytest.mark.parametrize("host", [r"\[/x]", "[red]x[/]", r"\\[/]", "{{7*7}}", "<img onerror=x>"])
def test_a_hostile_name_stays_text(host: str) -> None:
    assert _text(host).plain == host
    assert not _text(host).spans
