"""The questions about the whole fleet, explain, fit and summary: what is asked, how it is read, what is right."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from app.client import CapacityClient, Explanation, Fit, PoolTotals
from app.models.capacity import GpuType
from app.models.identity import AgentId
from app.models.insight import Hidden, Miss
from tests.bench.fleets import AGENT_TYPE, Figures, Fleet
from tests.bench.questions import INSIGHT_KINDS, Kind, Question, Told

_NEAREST: Final = 10
_MOST_SHAPES: Final = 1_000
_MIB: Final = 1024
_ROUTES: Final[dict[Kind, tuple[str, Any]]] = {
    "explain": ("explain", Explanation),
    "fit": ("fit", Fit),
    "summary": ("summary", list[PoolTotals]),
}


def asked_of(fleet: Fleet, questions: Sequence[Question]) -> list[Question]:
    """Those about this fleet; where everybody has a pool of his own a summary is as large as the fleet."""
    kinds = INSIGHT_KINDS - ({"summary"} if fleet.pools == 0 else set())
    return [question for question in questions if question.kind in kinds]


def client_call(client: CapacityClient, question: Question) -> Callable[[int], Any]:
    if question.kind == "summary":
        return lambda _: client.summary(agent_type=AGENT_TYPE)
    call = client.explain if question.kind == "explain" else client.fit
    return lambda _: call(question.min_vram_gb, question.min_cores)


def http_path(question: Question) -> str:
    path = f"/api/v1/capacity/{_ROUTES[question.kind][0]}"
    if question.kind == "summary":
        return f"{path}?agent_type={AGENT_TYPE}"
    return f"{path}?min_gpu_vram_gb={question.min_vram_gb}&min_cpu_cores={question.min_cores}"


def told_by_http(question: Question, document: Any) -> Told:
    return told(msgspec.convert(document, _ROUTES[question.kind][1]))


def told(answer: Explanation | Fit | list[PoolTotals]) -> Told:
    """Sums of decimals are compared to the last MiB."""
    if isinstance(answer, Explanation):
        return Told(parts=(answer,))
    if isinstance(answer, Fit):
        return Told(parts=(msgspec.structs.replace(answer, fragmentation=round(answer.fragmentation, 6)),))
    return Told(parts=tuple(sorted(answer, key=lambda row: row.pool_name)))


def right_answer(question: Question, fleet: Fleet, ids: Sequence[AgentId], figures: Sequence[Figures]) -> Told:
    """What must be told of a fleet in this state, by plain counting."""
    if question.kind == "explain":
        return told(_explanation(question, fleet, ids, figures))
    if question.kind == "fit":
        return told(_fit(question, figures))
    return told(_totals(fleet, figures))


def _explanation(
    question: Question, fleet: Fleet, ids: Sequence[AgentId], figures: Sequence[Figures]
) -> Explanation:
    failing: dict[str, int] = defaultdict(int)
    for each in figures:
        failing["+".join(_fails(question, each))] += 1
    fitting = failing.pop("", 0)
    return Explanation(
        agents=len(figures),
        fitting=fitting,
        failing={
            name: failing[name] for name in ("gpu_vram", "cpu_cores", "gpu_vram+cpu_cores") if failing.get(name)
        },
        nearest=[] if fitting else _nearest(question, fleet, ids, figures),
        hidden=Hidden(),
        possible=True if fitting else _possible(question, fleet),
    )


def _fails(question: Question, figures: Figures) -> tuple[str, ...]:
    lacks_vram, lacks_cores = figures.vram_gb < question.min_vram_gb, figures.cores < question.min_cores
    return ("gpu_vram",) * lacks_vram + ("cpu_cores",) * lacks_cores


def _nearest(question: Question, fleet: Fleet, ids: Sequence[AgentId], figures: Sequence[Figures]) -> list[Miss]:
    def best(lacking: set[str] | None, key: Callable[[int], tuple[Any, ...]]) -> list[int]:
        numbers = (
            number
            for number, each in enumerate(figures)
            if each.cores >= 1 and (lacking is None or set(_fails(question, each)) == lacking)
        )
        return heapq.nlargest(_NEAREST, numbers, key)

    def by_vram(number: int) -> tuple[Any, ...]:
        return figures[number].vram_gb, ids[number]

    def by_cores(number: int) -> tuple[Any, ...]:
        return figures[number].cores, figures[number].vram_gb, ids[number]

    numbers = best({"gpu_vram"}, by_vram) + best({"cpu_cores"}, by_cores)
    return [
        Miss(
            agent_id=ids[number],
            pool_name=fleet.pool(number),
            gpu_vram_available_gb=figures[number].vram_gb,
            cpu_cores_available=figures[number].cores,
            lacks_gpu_vram_gb=round(max(0.0, question.min_vram_gb - figures[number].vram_gb), 6),
            lacks_cpu_cores=max(0, question.min_cores - figures[number].cores),
            fails=_fails(question, figures[number]),
        )
        for number in numbers or best(None, by_vram)
    ]


def _possible(question: Question, fleet: Fleet) -> bool | None:
    shapes = {fleet.machine(number) for number in range(fleet.size)}
    if len(shapes) > _MOST_SHAPES:
        return None
    return any(vram_gb >= question.min_vram_gb and cores >= question.min_cores for vram_gb, cores in shapes)


def _fit(question: Question, figures: Sequence[Figures]) -> Fit:
    rooms = [min(int(each.vram_gb / question.min_vram_gb), each.cores // question.min_cores) for each in figures]
    free_mib = sum(_mib(each.vram_gb) for each in figures)
    used_mib = sum(rooms) * question.min_vram_gb * _MIB
    return Fit(
        tasks=sum(rooms), agents=sum(room > 0 for room in rooms), fragmentation=max(0.0, 1.0 - used_mib / free_mib)
    )


def _totals(fleet: Fleet, figures: Sequence[Figures]) -> list[PoolTotals]:
    by_pool: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for number, each in enumerate(figures):
        vram_total_gb, physical = fleet.machine(number)
        sums = by_pool[fleet.pool(number)]
        for place, amount in enumerate((1, _mib(each.vram_gb), _mib(vram_total_gb), each.cores, physical)):
            sums[place] += amount
    return [
        PoolTotals(
            agent_type=AGENT_TYPE,
            pool_name=pool,
            gpu_type=GpuType.NVIDIA,
            online=agents,
            placeable=agents,
            gpu_vram_available_gb=vram / _MIB,
            gpu_vram_total_gb=vram_total / _MIB,
            cpu_cores_available=cores,
            cpu_cores_physical=physical,
        )
        for pool, (agents, vram, vram_total, cores, physical) in by_pool.items()
    ]


def _mib(gb: float) -> int:
    return int(gb * _MIB + 0.5)
