"""A plan as people read it, in a terminal of 80 columns."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlpipe.plan.advice import Advice
from rlpipe.plan.placement import Seat, Spot, on_gpu, on_host
from rlpipe.plan.shortages import gib
from rlpipe.plan.stage import Scene, StagePlan
from rlpipe.plan.usage import Parts, total
from rlpipe.plan.whole import Plan

WIDTH = 80
"""Where the terminal does not say how wide it is, or is wider."""
BAR = 12


def show(plan: Plan, advice: dict[str, list[Advice]], console: Console) -> None:
    """Print the plan; `advice` by stage."""
    name = f"{plan.recipe.name} ({plan.recipe.task})"
    console.print(Text.assemble((name, "bold"), f" on {plan.cluster.named}"))
    for stage in plan.stages:
        console.print(Group(*_stage(stage, advice.get(stage.name, []))))


def _stage(stage: StagePlan, advice: list[Advice]) -> Iterator[RenderableType]:
    yield Text()
    if stage.name:
        yield Text(f"Stage {stage.name} ({stage.recipe.task})", "bold")
    trained = {"trained": _trained(stage)} if stage.held.trained else {}
    yield _pairs({"model": _model(stage)} | trained | stage.batches.lines)
    for scene in stage.scenes:
        yield Text()
        yield Text(f"Placement, {scene.title}", "bold")
        yield _placement(scene)
        yield Text()
        yield Text("Memory of a process at its fullest moment", "bold")
        yield _memory(scene)
    yield Text()
    yield Text(f"Time of {'a step' if stage.held.trained else 'its answers'}, estimated", "bold")
    yield _time(stage)
    yield from _said(stage, advice)


def _model(stage: StagePlan) -> str:
    count = stage.model.shapes.size(scores=False)
    return f"{stage.model.name}: {count:,} parameters, {stage.model.context:,} tokens (from {stage.model.source})"


def _trained(stage: StagePlan) -> str:
    held, kind = stage.held, stage.recipe.adapter.kind if stage.recipe.adapter else "all"
    packed = f", beneath them 4-bit weights of {gib(held.packed)}" if held.packed else ""
    return f"{held.trained:,} parameters ({kind}){packed}"


def _pairs(lines: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=15)
    table.add_column(overflow="fold")
    for name, text in lines.items():
        table.add_row(name, text)
    return table


def _placement(scene: Scene) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(overflow="fold")
    for spot in _told(scene):
        for i, seated in enumerate(spot.gpus):
            table.add_row(spot.node.name, f"GPU {i}", _seats(seated), _filled(on_gpu(seated), spot.node.gpu_bytes))
        without = [seat for seat in spot.seats if not seat.host.gpus]
        host = on_host(spot) if spot.seats else {}
        table.add_row(spot.node.name, "host", _seats(without), _filled(host, spot.node.host_bytes))
    return table


def _told(scene: Scene) -> Iterator[Spot]:
    """Nodes with something on them, and the first one anyhow."""
    for i, spot in enumerate(scene.placed.spots):
        if spot.seats or i == 0:
            yield spot


def _seats(seated: list[Seat]) -> str:
    """`policy + critic 0, engine 3`: what shares a process is joined by +, what takes turns on a GPU by /."""
    names = []
    for seat in seated:
        inside = " + ".join(role.name for role in seat.roles)
        beside = "".join(f" / {role.name} {seat.index * role.count // seat.host.count}" for role in seat.beside)
        names.append(f"{inside} {seat.index}{beside}")
    return ", ".join(names) or "-"


def _filled(parts: Parts, capacity: int | None) -> Text:
    taken = total(parts)
    if not capacity:
        return Text(gib(taken))
    share = taken / capacity
    bar = "█" * min(BAR, round(share * BAR))
    colour = "red" if share > 1 else "yellow" if share > 0.9 else "green"
    return Text.assemble((f"{bar:<{BAR}}", colour), f" {gib(taken)} of {gib(capacity)}")


def _memory(scene: Scene) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for role in scene.roles:
        usage = role.usage
        where = "GPU" if role.usage.host else "host"
        table.add_row(role.name, gib(total(usage.peak)), f"{where}, {usage.fullest}: {_listed(usage.peak)}")
        if usage.host:
            table.add_row("", gib(total(usage.host)), f"host: {_listed(usage.host)}")
    return table


def _listed(parts: Parts) -> str:
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(count)}" for name, count in ordered if count)


def _time(stage: StagePlan) -> Table:
    rates, took = stage.rates, stage.seconds
    whole = sum(took.values())
    table = _pairs({name: f"{_seconds(count)} ({count / whole:.0%})" for name, count in took.items()})
    table.add_row("together", f"{_seconds(whole)}, one after the other, every response at its greatest length")
    table.add_row(
        "rates taken",
        f"{rates.tflops:g} TFLOPS x {rates.utilization:g}, memory {rates.bandwidth:g} GB/s, "
        f"network {rates.network:g} GB/s, link to the host {rates.host:g} GB/s",
    )
    return table


def _seconds(count: float) -> str:
    return f"{count:.3g} s" if count < 120 else f"{count / 60:.3g} min"


def _said(stage: StagePlan, advice: list[Advice]) -> Iterator[RenderableType]:
    for title, colour, lines in (
        ("Does not divide", "yellow", stage.batches.uneven),
        ("Mind", "yellow", stage.remarks),
        ("Does not fit", "red", tuple(one.message for one in stage.shortages)),
    ):
        if lines:
            yield Text()
            yield Text(title, f"bold {colour}")
            yield from (_item(line) for line in lines)
    if stage.fits:
        return
    yield Text("What would fit", "bold")
    for one in advice:
        yield _item(f"{one.change}  ({gib(one.fullest)} where there is most)")
    if not advice:
        yield from map(_item, _without_advice(stage))


def _without_advice(stage: StagePlan) -> Iterator[str]:
    wanted = max(sum(role.gpus * role.count for role in scene.roles if not role.shares) for scene in stage.scenes)
    have = sum(spot.node.gpus for spot in stage.scenes[0].placed.spots)
    if wanted > have:
        yield (
            f"this recipe reserves {wanted:g} GPUs, and there are {have}: take more, or let roles share one "
            "(KEY.share=policy, placement=colocated, KEY.resources.gpus=0.5)"
        )
    yield "no change of memory settings alone; take more or larger GPUs, a smaller model, or adapter.kind=lora"


def _item(text: str) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row("-", Text(text, overflow="fold"))
    return row
