"""A fake NVIDIA driver, built once for the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.children import forget_children
from tests.fake_nvml import FakeNvml, build_library, fake_host


@pytest.fixture(autouse=True)
def _servers_of_the_run_are_no_children_of_a_test() -> None:
    forget_children()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = fake_host(tmp_path / "host", nvml_library)
    fake.enter(monkeypatch)
    return fake
