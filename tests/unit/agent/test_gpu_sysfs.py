"""AMD and Intel GPUs, from trees that look like their drivers' files, and from faked driver calls."""

from __future__ import annotations

import ctypes
import errno
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from workers.host_agent.probes import gpu_amd, gpu_intel
from workers.host_agent.probes.devices import Device, Sample, best, merge
from workers.host_agent.probes.gpu import Gpus
from workers.host_agent.probes.gpu_amd import AmdProbe
from workers.host_agent.probes.gpu_intel import IntelProbe

GIB = 1 << 30


def add_card(root: Path, number: int, vendor: str, driver: str, **files: str) -> Path:
    """A card as the kernel shows it: `cardN/device` leads to its PCI folder. Returns that folder."""
    pci = root / f"sys/devices/pci0000:00/0000:0{number}:00.0"
    (pci / f"drm/card{number}").mkdir(parents=True)
    (pci / f"drm/renderD{128 + number}").mkdir()
    drivers = root / "sys/bus/pci/drivers" / driver
    drivers.mkdir(parents=True, exist_ok=True)
    (pci / "driver").symlink_to(drivers)
    (pci / f"drm/card{number}/device").symlink_to("../..")
    for name, content in {"vendor": vendor, **files}.items():
        (pci / name).write_text(content + "\n")
    classes = root / "sys/class/drm"
    classes.mkdir(parents=True, exist_ok=True)
    (classes / f"card{number}").symlink_to(pci / f"drm/card{number}")
    (classes / f"card{number}-HDMI-A-1").mkdir()
    (root / "dev/dri").mkdir(parents=True, exist_ok=True)
    (root / f"dev/dri/renderD{128 + number}").touch()
    return pci


def add_meminfo(root: Path, total_kib: int, available_kib: int) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {total_kib} kB\nMemAvailable:   {available_kib} kB\n")


def add_amd(root: Path, number: int, total: int, used: int, **files: str) -> Path:
    memory = {"mem_info_vram_total": str(total), "mem_info_vram_used": str(used)}
    return add_card(root, number, "0x1002", "amdgpu", **memory, **files)


def amd(root: Path) -> Sample:
    return AmdProbe(root).sample(with_processes=False)


def test_an_amd_card(tmp_path: Path) -> None:
    add_amd(tmp_path, 0, 16 * GIB, 3 * GIB, device="0x73bf", unique_id="abc123", product_name="Radeon RX 6800")
    assert gpu_amd.present(tmp_path)
    assert amd(tmp_path) == Sample([Device("amd", 0, "abc123", "Radeon RX 6800", 16 * 1024, 13 * 1024)], [])


def test_several_amd_cards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    add_amd(tmp_path, 10, 8 * GIB, GIB)
    add_amd(tmp_path, 2, 16 * GIB, GIB)
    add_card(tmp_path, 0, "0x1234", "bochs-drm")
    found = amd(tmp_path).devices
    assert [device.total_mib // 1024 for device in found] == [16, 8]
    assert [device.uuid for device in found] == ["0000:02:00.0", "0000:010:00.0"]


def test_a_name_from_the_list_that_libdrm_brings(tmp_path: Path) -> None:
    add_amd(tmp_path, 0, GIB, 0, device="0x744c", revision="0xc8")
    names = tmp_path / "usr/share/libdrm/amdgpu.ids"
    names.parent.mkdir(parents=True)
    names.write_text("# comment\n1.0.0\n744C,\tC9,\tAMD Other\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n")
    assert amd(tmp_path).devices[0].name == "AMD Radeon RX 7900 XTX"


def test_an_apu_has_what_it_may_borrow_as_far_as_it_is_free(tmp_path: Path) -> None:
    device = add_amd(
        tmp_path, 0, GIB // 2, GIB // 4, mem_info_gtt_total=str(60 * GIB), mem_info_gtt_used=str(2 * GIB)
    )
    (device / "gpu_metrics").write_bytes(struct.pack("<HBB", 120, 2, 4) + bytes(100))
    add_meminfo(tmp_path, 64 << 20, 32 << 20)
    (apu,) = amd(tmp_path).devices
    assert apu.shared
    assert (apu.total_mib, apu.free_mib) == (512 + 60 * 1024, 256 + 32 * 1024)
    add_meminfo(tmp_path, 64 << 20, 63 << 20)
    assert amd(tmp_path).devices[0].free_mib == 256 + 58 * 1024


def test_a_card_with_metrics_of_its_own_kind_is_no_apu(tmp_path: Path) -> None:
    device = add_amd(tmp_path, 0, 8 * GIB, 0, mem_info_gtt_total=str(60 * GIB), mem_info_gtt_used="0")
    (device / "gpu_metrics").write_bytes(struct.pack("<HBB", 120, 1, 3) + bytes(100))
    assert amd(tmp_path).devices[0] == Device("amd", 0, "0000:00:00.0", "AMD GPU", 8 * 1024, 8 * 1024)


def test_a_card_that_fell_off_the_bus_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_amd(tmp_path, 0, 16 * GIB, GIB)
    add_amd(tmp_path, 1, 8 * GIB, GIB)
    read = Path.read_text

    def lost(path: Path, *args: str, **kwargs: str) -> str:
        if path.name == "mem_info_vram_used" and "card0" in str(path):
            raise OSError(errno.ENODEV, "No such device")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", lost)
    found = amd(tmp_path)
    assert [device.number for device in found.devices] == [1]
    assert len(found.reasons) == 1
    assert "No such device" in found.reasons[0]


def test_more_used_than_there_is_leaves_nothing(tmp_path: Path) -> None:
    add_amd(tmp_path, 0, 8 * GIB, 9 * GIB)
    assert amd(tmp_path).devices[0].free_mib == 0


def test_without_figures_and_without_amdsmi_there_is_a_reason(tmp_path: Path) -> None:
    add_card(tmp_path, 0, "0x1002", "radeon")
    assert amd(tmp_path).devices == []
    assert "amdsmi is not usable" in amd(tmp_path).reasons[0]


def test_amdsmi_fills_in_where_the_kernel_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = ModuleType("amdsmi")
    vars(smi).update(
        AmdSmiException=type("AmdSmiException", (Exception,), {}),
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: ["a", "b"],
        amdsmi_get_gpu_vram_usage=lambda handle: {"vram_total": 65536, "vram_used": 1024 if handle == "a" else 0},
        amdsmi_get_gpu_device_uuid=lambda handle: f"uuid-{handle}",
        amdsmi_get_gpu_asic_info=lambda _: {"market_name": "AMD Instinct"},
    )
    monkeypatch.setitem(sys.modules, "amdsmi", smi)
    add_card(tmp_path, 0, "0x1002", "amdgpu")
    assert amd(tmp_path) == Sample(
        [
            Device("amd", 0, "uuid-a", "AMD Instinct", 65536, 64512),
            Device("amd", 1, "uuid-b", "AMD Instinct", 65536, 65536),
        ],
        [],
    )


def test_the_child_reads_a_tree_too(tmp_path: Path) -> None:
    add_amd(tmp_path, 0, 16 * GIB, 3 * GIB)
    gpus = Gpus(
        vendors=("amd", "intel"),
        host_root=tmp_path,
        deadline_s=5,
        start_s=20,
        restart_s=1,
    )
    try:
        found = gpus.sample(with_processes=False, stopping=lambda: False)
        assert [device.free_mib for device in found.devices] == [13 * 1024]
        (tmp_path / "sys/class/drm/card0").unlink()
        gone = gpus.sample(with_processes=False, stopping=lambda: False)
        assert gone == Sample([], ["amd: the GPU is gone"])
    finally:
        gpus.close()


# Intel


def copy_to(address: int, content: bytes) -> None:
    ctypes.memmove(address, content, len(content))


def xe(regions: list[tuple[int, int, int]]) -> Callable[[int, int, bytearray], None]:
    """An ioctl that answers as the kernel's xe driver: (class, total, used) a region."""
    answer = struct.pack("=II", len(regions), 0) + b"".join(
        struct.pack("=HHIQQQQ6Q", kind, 0, 4096, total, used, total, used, *[0] * 6)
        for kind, total, used in regions
    )

    def ioctl(_descriptor: int, request: int, argument: bytearray) -> None:
        assert request == 0xC0286440
        extensions, query, size, data, *reserved = struct.unpack("=QIIQQQ", argument)
        assert (extensions, query, reserved) == (0, 1, [0, 0])
        if size == 0:
            argument[:] = struct.pack("=QIIQQQ", 0, 1, len(answer), 0, 0, 0)
        else:
            assert size == len(answer)
            copy_to(data, answer)

    return ioctl


def i915(regions: list[tuple[int, int, int]]) -> Callable[[int, int, bytearray], None]:
    """An ioctl that answers as the kernel's i915 driver: (class, probed, unallocated) a region."""
    answer = struct.pack("=IIII", len(regions), 0, 0, 0) + b"".join(
        struct.pack("=HHIQQ8Q", kind, 0, 0, probed, free, *[0] * 8) for kind, probed, free in regions
    )

    def ioctl(_descriptor: int, request: int, argument: bytearray) -> None:
        assert request == 0xC0106479
        items, _flags, item = struct.unpack("=IIQ", argument)
        assert items == 1
        query, length, _flags, data = struct.unpack("=QiIQ", ctypes.string_at(item, 24))
        assert query == 4
        if length == 0:
            copy_to(item, struct.pack("=QiIQ", 4, len(answer), 0, 0))
        else:
            assert length == len(answer)
            copy_to(data, answer)

    return ioctl


@pytest.fixture
def perfmon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_intel, "may_see_usage", lambda: True)


@pytest.mark.usefixtures("perfmon")
def test_an_intel_card_under_xe(tmp_path: Path) -> None:
    add_card(tmp_path, 1, "0x8086", "xe", device="0xe20b")
    assert gpu_intel.present(tmp_path)
    probe = IntelProbe(tmp_path, xe([(0, 64 * GIB, GIB), (1, 12 * GIB, 2 * GIB)]))
    assert probe.sample(with_processes=False) == Sample(
        [Device("intel", 0, "0000:01:00.0", "Intel GPU e20b", 12 * 1024, 10 * 1024)], []
    )


@pytest.mark.usefixtures("perfmon")
def test_an_intel_card_under_i915(tmp_path: Path) -> None:
    add_card(tmp_path, 1, "0x8086", "i915", device="0x56a0")
    probe = IntelProbe(tmp_path, i915([(0, 64 * GIB, 60 * GIB), (1, 16 * GIB, 15 * GIB)]))
    assert probe.sample(with_processes=False).devices == [
        Device("intel", 0, "0000:01:00.0", "Intel GPU 56a0", 16 * 1024, 15 * 1024)
    ]


@pytest.mark.usefixtures("perfmon")
def test_integrated_intel_graphics_are_no_gpu(tmp_path: Path) -> None:
    add_card(tmp_path, 0, "0x8086", "i915")
    add_card(tmp_path, 1, "0x8086", "xe")
    ioctls = {0: i915([(0, 64 * GIB, 60 * GIB)]), 1: xe([(0, 64 * GIB, 0)])}
    for number, ioctl in ioctls.items():
        hidden = tmp_path / f"sys/class/drm/card{1 - number}"
        target = hidden.readlink()
        hidden.unlink()
        assert IntelProbe(tmp_path, ioctl).sample(with_processes=False) == Sample([], [])
        hidden.symlink_to(target)


def test_without_the_right_to_see_usage_nothing_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_intel, "may_see_usage", lambda: False)
    add_card(tmp_path, 1, "0x8086", "xe")
    found = IntelProbe(tmp_path, xe([(1, 12 * GIB, 0)])).sample(with_processes=False)
    assert [(device.total_mib, device.free_mib) for device in found.devices] == [(12 * 1024, 0)]
    assert "CAP_PERFMON" in found.reasons[0]


def test_files_of_the_data_centre_driver_need_no_right(tmp_path: Path) -> None:
    device = add_card(tmp_path, 0, "0x8086", "i915")
    (device / "drm/card0/lmem_total_bytes").write_text(f"{48 * GIB}\n")
    (device / "drm/card0/lmem_avail_bytes").write_text(f"{40 * GIB}\n")
    (found,) = IntelProbe(tmp_path).sample(with_processes=False).devices
    assert (found.total_mib, found.free_mib) == (48 * 1024, 40 * 1024)


@pytest.mark.usefixtures("perfmon")
@pytest.mark.parametrize("driver", ["xe", "i915"])
def test_a_driver_that_refuses_is_a_reason(tmp_path: Path, driver: str) -> None:
    add_card(tmp_path, 0, "0x8086", driver)

    def refuse(_descriptor: int, request: int, argument: bytearray) -> None:
        if request == 0xC0286440:
            raise OSError(errno.ENODEV, "No such device")
        copy_to(struct.unpack("=IIQ", argument)[2], struct.pack("=QiIQ", 4, -errno.ENODEV, 0, 0))

    found = IntelProbe(tmp_path, refuse).sample(with_processes=False)
    assert found.devices == []
    assert "No such device" in found.reasons[0]


def test_the_real_ioctl_on_what_is_no_gpu_is_a_reason(tmp_path: Path) -> None:
    add_card(tmp_path, 0, "0x8086", "xe")
    found = IntelProbe(tmp_path).sample(with_processes=False)
    assert found.devices == []
    assert len(found.reasons) == 1


def test_the_right_to_see_usage_is_read_from_the_process() -> None:
    effective = next(
        int(line.split()[1], 16)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff")
    )
    assert gpu_intel.may_see_usage() == bool(effective & (1 << 38 | 1 << 21))


# All vendors together


def test_vendors_are_joined_with_unique_numbers() -> None:
    joined = merge(
        [
            Sample([Device("nvidia", 0, "a", "", 10, 5), Device("nvidia", 3, "b", "", 10, 5)], []),
            Sample([Device("amd", 0, "c", "", 10, 9)], ["amd: something"]),
            Sample([], ["intel: something"]),
        ]
    )
    assert [(device.number, device.uuid) for device in joined.devices] == [(0, "a"), (3, "b"), (4, "c")]
    assert joined.reasons == ["amd: something", "intel: something"]


def test_borrowed_memory_never_hides_a_card() -> None:
    laptop = [
        Sample([Device("nvidia", 0, "card", "", 8192, 7000)], []),
        Sample([Device("amd", 0, "apu", "", 32768, 30000, shared=True)], []),
    ]
    assert [device.uuid for device in merge(laptop).devices] == ["card"]
    assert [device.uuid for device in merge(laptop[1:]).devices] == ["apu"]


def test_the_best_is_the_one_with_most_free_then_the_larger_then_the_first() -> None:
    small, large = Device("nvidia", 0, "small", "", 10, 5), Device("nvidia", 1, "large", "", 20, 5)
    twin = Device("nvidia", 2, "twin", "", 20, 5)
    assert best([small, twin, large]) == large
    assert best([small, Device("amd", 9, "", "", 6, 6)]) == Device("amd", 9, "", "", 6, 6)
    assert best([]) is None
