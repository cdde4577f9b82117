"""NVIDIA GPUs, through a library that does what drivers do on bad days, in a real child process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.children import children
from tests.fake_nvml import GIB, TITAN, FakeNvml
from tests.gpus import HASTY_S, open_gpus, sample, sampled_until
from tests.waiting import PATIENCE_S, wait_until
from workers.host_agent.probes.devices import Sample, best
from workers.host_agent.probes.gpu import Gpus


@pytest.fixture
def gpus(nvml: FakeNvml) -> Iterator[Gpus]:
    opened = open_gpus(nvml.host_root)
    yield opened
    opened.close()
    assert children() == []


def test_one_gpu_in_whole_mib(gpus: Gpus, nvml: FakeNvml) -> None:
    nvml.say({**TITAN, "gpu0.free": 20 * GIB + 12_345})
    found = sample(gpus)
    (gpu,) = found.devices
    assert (gpu.vendor, gpu.number, gpu.name) == ("nvidia", 0, "NVIDIA Titan")
    assert (gpu.uuid, gpu.total_mib, gpu.free_mib) == ("GPU-gpu0-of-the-tests", 24 * 1024, 20 * 1024)
    assert not gpu.shared
    assert found.reasons == []


def test_the_child_is_kept_between_samples(gpus: Gpus, nvml: FakeNvml) -> None:
    sample(gpus)
    (first,) = children()
    nvml.say({**TITAN, "gpu0.free": 3 * GIB})
    assert sample(gpus).devices[0].free_mib == 3 * 1024
    assert children() == [first]


def test_of_two_gpus_the_one_with_more_free_memory_is_best(gpus: Gpus, nvml: FakeNvml) -> None:
    nvml.say({**TITAN, "count": 2, "gpu0.free": GIB, "gpu1.total": 12 * GIB, "gpu1.free": 11 * GIB})
    found = sample(gpus)
    assert [(gpu.number, gpu.free_mib) for gpu in found.devices] == [(0, 1024), (1, 11 * 1024)]
    chosen = best(found.devices)
    assert chosen is not None
    assert chosen.number == 1


def test_a_gpu_off_the_bus_does_not_hide_the_other_and_returns(gpus: Gpus, nvml: FakeNvml) -> None:
    both = {**TITAN, "count": 2, "gpu1.total": 12 * GIB, "gpu1.free": 11 * GIB}
    nvml.say({**both, "gpu0.handle": 15})
    found = sample(gpus)
    assert [gpu.number for gpu in found.devices] == [1]
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("nvidia: NVML: GPU 0: ")
    nvml.say(both)
    again = sample(gpus)
    assert [gpu.number for gpu in again.devices] == [0, 1]
    assert again.reasons == []


def test_mig_slices_stand_for_their_gpu(gpus: Gpus, nvml: FakeNvml) -> None:
    nvml.say(
        {
            **TITAN,
            "count": 2,
            "gpu0.slots": 7,
            "gpu0-0.total": 10 * GIB,
            "gpu0-0.free": 9 * GIB,
            "gpu0-2.total": 5 * GIB,
            "gpu0-2.free": 4 * GIB,
            "gpu1.total": 8 * GIB,
            "gpu1.free": 2 * GIB,
        }
    )
    found = sample(gpus)
    assert [(gpu.number, gpu.total_mib // 1024, gpu.free_mib // 1024) for gpu in found.devices] == [
        (1, 8, 2),
        (2, 10, 9),
        (3, 5, 4),
    ]
    assert found.devices[1].uuid == "GPU-gpu0-0-of-the-tests"


def test_mig_without_slices_is_no_memory_at_all(gpus: Gpus, nvml: FakeNvml) -> None:
    nvml.say({**TITAN, "gpu0.slots": 7})
    assert sample(gpus).devices == []


def test_a_gpu_without_memory_of_its_own_has_the_machines(gpus: Gpus, nvml: FakeNvml) -> None:
    nvml.say({**TITAN, "gpu0.memory": 3})
    (gpu,) = sample(gpus).devices
    memory = psutil.virtual_memory()
    assert gpu.shared
    assert gpu.total_mib == memory.total >> 20
    assert gpu.free_mib == pytest.approx(memory.available >> 20, rel=0.2)


@pytest.mark.parametrize("code", [13, 25], ids=["function not found", "version mismatch"])
def test_an_older_driver_knows_the_older_call_only(gpus: Gpus, nvml: FakeNvml, code: int) -> None:
    nvml.say({**TITAN, "memory": code})
    assert sample(gpus).devices[0].free_mib == 20 * 1024


def test_processes_are_told_when_asked_for(gpus: Gpus, nvml: FakeNvml) -> None:
    nvml.say({**TITAN, "gpu0.pid": 4711, "gpu0.pid_used": 3 * GIB})
    assert sample(gpus, with_processes=True).devices[0].used_by_pid == {"4711": 3 * 1024}
    assert sample(gpus).devices[0].used_by_pid == {}


@pytest.mark.parametrize(
    "trouble",
    [{"init": 9}, {"init": 18}, {"get_count": 999}, {"memory": 15}, {"gpu0.handle": 16}, {"gpu0.uuid": 999}],
    ids=["driver not loaded", "library older than driver", "unknown", "lost", "reset required", "no name"],
)
def test_an_error_code_is_a_reason_and_the_gpu_returns(
    gpus: Gpus, nvml: FakeNvml, trouble: dict[str, int]
) -> None:
    nvml.say({**TITAN, **trouble})
    found = sample(gpus)
    assert found.devices == []
    assert found.reasons[0].startswith("nvidia: NVML: ")
    nvml.say(TITAN)
    assert sampled_until(gpus, lambda again: bool(again.devices)).reasons == []


def test_a_call_that_never_returns_costs_one_deadline(nvml: FakeNvml) -> None:
    gpus = open_gpus(nvml.host_root, deadline_s=HASTY_S)
    assert sample(gpus).devices
    (first,) = children()
    nvml.say({**TITAN, "memory": "hang"})
    assert sample(gpus) == Sample([], ["nvidia: no answer within 1 s"])
    assert not first.is_running()
    # Nobody waits for the next child, which hangs as well: here that would be for ever.
    gpus._probes["nvidia"]._deadline_s = 3600.0
    for _ in range(5):
        found = sample(gpus)
        assert found.devices == []
        assert found.reasons
    nvml.say(TITAN)
    # The child that hangs is given its time to start; a reset of the driver is what ends it in life.
    for child in children():
        child.kill()
    assert sampled_until(gpus, lambda again: bool(again.devices)).reasons == []
    gpus.close()
    assert children() == []


def test_a_driver_that_hangs_from_the_start_holds_up_only_the_first_sample(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.host_agent.probes.gpu._FIRST_WAIT_S", 1.0)
    nvml.say({"init": "hang"})
    gpus = Gpus(
        vendors=("nvidia",),
        host_root=nvml.host_root,
        deadline_s=HASTY_S,
        start_s=2.0,
        restart_s=0.05,
    )
    assert sample(gpus) == Sample([], ["nvidia: the driver has not answered yet"])
    (first,) = children()
    assert sampled_until(
        gpus, lambda found: "within 2 s of its start" in found.reasons[0] or not first.is_running()
    )
    nvml.say(TITAN)
    sampled_until(gpus, lambda found: bool(found.devices))
    gpus.close()
    assert children() == []


def zombies() -> list[psutil.Process]:
    found = []
    for child in children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_a_crash_is_a_reason_and_leaves_no_zombie(gpus: Gpus, nvml: FakeNvml) -> None:
    assert sample(gpus).devices
    nvml.say({**TITAN, "memory": "crash"})
    assert sample(gpus) == Sample([], ["nvidia: the sampling child crashed with SIGSEGV"])
    for _ in range(5):
        assert sample(gpus).devices == []
        wait_until(lambda: not zombies(), what="the crashed child to be reaped")
    nvml.say(TITAN)
    assert sampled_until(gpus, lambda again: bool(again.devices)).reasons == []


def test_a_child_that_dies_between_samples_is_reaped_at_once(gpus: Gpus) -> None:
    assert sample(gpus).devices
    (child,) = children()
    child.kill()
    wait_until(lambda: not children(), what="the child to be reaped")
    assert sampled_until(gpus, lambda again: bool(again.devices)).reasons == []


def test_a_driver_that_stays_broken_is_asked_less_and_less(nvml: FakeNvml) -> None:
    nvml.say({"init": 9})
    gpus = open_gpus(nvml.host_root, restart_s=30.0)
    assert sample(gpus).reasons
    # The second start follows at once; the third is 30 s away.
    sampled_until(gpus, lambda found: bool(found.reasons) and not children())
    for _ in range(20):
        assert sample(gpus).reasons
        assert children() == []
    gpus.close()


def test_without_the_driver_no_child_is_started(tmp_path: Path) -> None:
    gpus = open_gpus(tmp_path)
    assert sample(gpus) == Sample([], [])
    assert children() == []


# Laptops


def put_in_laptop(nvml: FakeNvml, *, status: str, battery: bool = True) -> None:
    gpu = nvml.host_root / "sys/bus/pci/devices/0000:01:00.0"
    (gpu / "power").mkdir(parents=True, exist_ok=True)
    supply = nvml.host_root / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True, exist_ok=True)
    mouse = nvml.host_root / "sys/class/power_supply/hidpp_battery_0"
    mouse.mkdir(exist_ok=True)
    for path, content in {
        gpu / "vendor": "0x10de",
        gpu / "class": "0x030200",
        gpu / "power/control": "auto",
        gpu / "power/runtime_status": status,
        supply / "type": "Battery" if battery else "Mains",
        mouse / "type": "Battery",
        mouse / "scope": "Device",
    }.items():
        path.write_text(content + "\n")


def test_a_sleeping_gpu_is_not_woken_and_has_all_its_memory(gpus: Gpus, nvml: FakeNvml) -> None:
    put_in_laptop(nvml, status="active")
    nvml.say({**TITAN, "gpu0.free": 23 * GIB})
    sample(gpus)
    nvml.say({**TITAN, "gpu0.free": 5 * GIB})
    assert sample(gpus).devices[0].free_mib == 5 * 1024
    put_in_laptop(nvml, status="suspended")
    nvml.say({"init": "crash", "memory": "crash"})
    for _ in range(3):
        (gpu,) = sample(gpus).devices
        assert (gpu.total_mib, gpu.free_mib) == (24 * 1024, 23 * 1024)


def test_a_gpu_that_may_sleep_is_let_go_of_after_each_look(nvml: FakeNvml) -> None:
    """The library is opened anew, which this one shows by failing to open."""
    for battery, reopened in ((True, True), (False, False)):
        put_in_laptop(nvml, status="active", battery=battery)
        nvml.say(TITAN)
        gpus = open_gpus(nvml.host_root)
        assert sample(gpus).devices
        nvml.say({**TITAN, "init": 9})
        assert bool(sample(gpus).reasons) is reopened
        gpus.close()


def test_a_gpu_that_sleeps_at_the_start_is_woken_once_to_be_known(gpus: Gpus, nvml: FakeNvml) -> None:
    put_in_laptop(nvml, status="suspended")
    assert sample(gpus).devices[0].free_mib == 20 * 1024
    nvml.say({"init": "crash"})
    assert sample(gpus).devices[0].free_mib == 20 * 1024


def test_a_late_vendor_does_not_cost_another_its_answer(nvml: FakeNvml) -> None:
    add_amd_card(nvml.host_root)
    gpus = Gpus(
        vendors=("nvidia", "amd"), host_root=nvml.host_root, deadline_s=HASTY_S, start_s=PATIENCE_S, restart_s=0.05
    )
    assert {device.vendor for device in sample(gpus).devices} == {"nvidia", "amd"}
    nvml.say({**TITAN, "memory": "hang"})
    found = sample(gpus)
    assert [device.vendor for device in found.devices] == ["amd"]
    assert found.reasons == ["nvidia: no answer within 1 s"]
    gpus.close()


def add_amd_card(root: Path) -> None:
    device = root / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    for name, content in {"vendor": "0x1002", "mem_info_vram_total": 8 * GIB, "mem_info_vram_used": 0}.items():
        (device / name).write_text(f"{content}\n")
