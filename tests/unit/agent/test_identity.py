"""Who the agent is, through restarts, power cuts, clones and second agents."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path

import pytest

from app.errors import StartupRefusedError
from workers.host_agent.identity import keep_agent_id, only_agent, read_agent_id
from workers.host_agent.machine import Machine, this_machine

MACHINE = Machine("machine", "board", ("card", "second card"))


def test_it_is_made_once_and_kept(tmp_path: Path) -> None:
    assert read_agent_id(tmp_path, MACHINE) is None
    made = keep_agent_id(tmp_path, MACHINE)
    assert str(uuid.UUID(made)) == made
    assert [keep_agent_id(tmp_path, MACHINE) for _ in range(3)] == [made] * 3
    assert read_agent_id(tmp_path, MACHINE) == made


def test_reading_writes_nothing(tmp_path: Path) -> None:
    read_agent_id(tmp_path / "missing", MACHINE)
    assert list(tmp_path.iterdir()) == []


def test_the_file_and_then_its_folder_are_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        synced.append((kind, os.fstat(descriptor).st_size > 0, (tmp_path / "identity.json").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    keep_agent_id(tmp_path, MACHINE)
    assert [(kind, there) for kind, _, there in synced] == [(stat.S_IFREG, False), (stat.S_IFDIR, True)]
    assert synced[0][1], "the content was written before it was forced to disk"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = keep_agent_id(tmp_path, Machine("machine"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(StartupRefusedError, match="No space left"):
            keep_agent_id(tmp_path, MACHINE)
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]
    assert keep_agent_id(tmp_path, MACHINE) == made


def test_what_a_power_cut_left_half_written_is_cleared(tmp_path: Path) -> None:
    made = keep_agent_id(tmp_path, MACHINE)
    for leftover in ("identity.json.tmp", "identity.json.4711.tmp"):
        (tmp_path / leftover).write_text("{")
    assert keep_agent_id(tmp_path, MACHINE) == made
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"{}", b'{"agent_id": "x", "machine": ["", "", []]}', b"\xff"]
)
def test_a_broken_state_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.json").write_bytes(content)
    made = keep_agent_id(tmp_path, MACHINE)
    assert keep_agent_id(tmp_path, MACHINE) == made


def test_a_state_file_that_cannot_be_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keep_agent_id(tmp_path, MACHINE)

    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as trouble:
        trouble.setattr(Path, "read_bytes", fail)
        with pytest.raises(StartupRefusedError, match="cannot be read"):
            keep_agent_id(tmp_path, MACHINE)
    assert keep_agent_id(tmp_path, MACHINE) == made


@pytest.mark.parametrize(
    "clone",
    [
        Machine("another machine", "board", ("card",)),
        Machine("machine", "another board", ("card",)),
        Machine("machine", "", ("another card",)),
        Machine("another machine"),
    ],
    ids=["machine id", "same id, other board", "same id, board unknown, other network", "nothing else known"],
)
def test_a_cloned_disk_gets_an_identity_of_its_own(tmp_path: Path, clone: Machine) -> None:
    original = keep_agent_id(tmp_path, MACHINE)
    fresh = keep_agent_id(tmp_path, clone)
    assert fresh != original
    assert keep_agent_id(tmp_path, clone) == fresh


@pytest.mark.parametrize(
    "same",
    [
        Machine("machine", "board", ("replaced card",)),
        Machine("machine", "", ("second card", "new card")),
        Machine("machine", "", ()),
        Machine("", "", ()),
    ],
    ids=["new network card", "one card replaced, not root", "cards not seen", "nothing known"],
)
def test_the_same_machine_seen_otherwise_keeps_it(tmp_path: Path, same: Machine) -> None:
    made = keep_agent_id(tmp_path, MACHINE)
    assert keep_agent_id(tmp_path, same) == made
    # What only root could see is not forgotten: a clone is still told apart.
    assert keep_agent_id(tmp_path, Machine("machine", "another board")) != made


def test_the_state_file_holds_no_machine_id(tmp_path: Path) -> None:
    etc = tmp_path / "root/etc"
    etc.mkdir(parents=True)
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    machine = this_machine(tmp_path / "root")
    assert machine.machine_id
    keep_agent_id(tmp_path, machine)
    assert "0123456789abcdef" not in (tmp_path / "identity.json").read_text()


def add_network_card(root: Path, name: str, *, bus: str, address: str, assigned: int) -> None:
    card = root / "sys/class/net" / name
    (root / "sys/bus" / bus).mkdir(parents=True, exist_ok=True)
    (card / "device").mkdir(parents=True)
    (card / "device/subsystem").symlink_to(root / "sys/bus" / bus)
    (card / "address").write_text(address + "\n")
    (card / "addr_assign_type").write_text(f"{assigned}\n")


def test_only_built_in_cards_with_a_lasting_address_tell_a_machine(tmp_path: Path) -> None:
    add_network_card(tmp_path, "wlan0", bus="pci", address="aa:00:00:00:00:01", assigned=1)
    add_network_card(tmp_path, "dock0", bus="usb", address="aa:00:00:00:00:02", assigned=0)
    add_network_card(tmp_path, "zero0", bus="pci", address="00:00:00:00:00:00", assigned=0)
    (tmp_path / "sys/class/net/docker0").mkdir()
    assert this_machine(tmp_path).network == ()
    add_network_card(tmp_path, "eth0", bus="pci", address="aa:00:00:00:00:03", assigned=0)
    assert len(this_machine(tmp_path).network) == 1


def test_this_machine_is_the_same_twice() -> None:
    assert this_machine() == this_machine()
    assert this_machine().differs_from(this_machine()) == ""


def test_a_second_agent_with_the_same_state_is_refused(tmp_path: Path) -> None:
    with only_agent(tmp_path), pytest.raises(StartupRefusedError, match="Another agent"), only_agent(tmp_path):
        pass
    with only_agent(tmp_path):
        pass


def test_a_state_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupRefusedError, match="--state-dir"), only_agent(tmp_path / "file" / "state"):
        pass
