"""The verb that says what a recipe takes. As in `cli`, nothing heavy up here."""

from typing import TYPE_CHECKING, Annotated

import typer

from rlpipe.cli_runs import Changes, RecipeArgument
from rlpipe.terminal import mistakes_told, stop

if TYPE_CHECKING:
    from rlpipe.plan.hardware import Cluster, Rates


def plan(
    recipe: RecipeArgument,
    changes: Changes = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="COUNTxMEMORY", help="GPUs of each node: 8x80GB; 0 for none.")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="How many such nodes there are.")] = 1,
    host_memory: Annotated[
        str | None, typer.Option("--host-memory", metavar="MEMORY", help="Main memory of each node: 512GB.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="ADDRESS", help="Ask a Ray dashboard: http://head:8265.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", min=1, help="Tokens of a prompt in RL.  [default: 512]")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=0.001, help="10^12 operations a second of a GPU at best.")
    ] = None,
    utilization: Annotated[
        float | None, typer.Option("--utilization", min=0.01, max=1, help="Share of them that is reached.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", min=0.1, help="GB/s between a GPU and its memory.")
    ] = None,
    network: Annotated[float | None, typer.Option("--network", min=0.01, help="GB/s between processes.")] = None,
    host: Annotated[
        float | None, typer.Option("--host-link", min=0.01, help="GB/s between a GPU and its host's memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain values, for tools.")] = False,
) -> None:
    """Say what a recipe takes: batches, placement, memory, time.

    Needs no GPU, no cluster and no weights: it reads the recipe and the model's config.json, from its folder or the
    hub's cache, and downloads nothing. Without --gpus and --cluster it plans for this machine. Exits with 1 when the
    recipe does not fit, and says which lines to change.

    \b
    Examples:
      rlpipe plan arithmetic/pipeline
      rlpipe plan gsm8k/grpo --gpus 2x24GB
      rlpipe plan gsm8k/grpo model.path=Qwen/Qwen2.5-7B-Instruct --gpus 8x80GB --nodes 4
      rlpipe plan my.yaml --cluster http://head:8265 --json
    """
    from rlpipe.plan.hardware import HardwareError
    from rlpipe.plan.stage import Asked
    from rlpipe.plan.whole import Unplannable
    from rlpipe.plan.whole import plan as plan_of

    with mistakes_told():
        from rlpipe.recipe.load import load

        loaded = load(recipe, changes or ())
    try:
        machines = _cluster(gpus, nodes, host_memory, cluster)
        said = {"tflops": tflops, "utilization": utilization, "bandwidth": bandwidth, "network": network, "host": host}
        asked = Asked(prompt_tokens, _rates(machines, said))
        planned = plan_of(loaded, machines, asked)
    except (HardwareError, Unplannable) as error:
        stop(str(error))
    from rlpipe.plan.advice import advice

    told = {stage.name: advice(planned, stage, asked) for stage in planned.stages if not stage.fits}
    if as_json:
        import json

        from rlpipe.plan.tools import as_data

        typer.echo(json.dumps(as_data(planned, told), indent=1))
    else:
        from rich.console import Console

        from rlpipe.plan.show import WIDTH, show

        console = Console(highlight=False)
        console.width = min(console.width, WIDTH)
        show(planned, told, console)
    raise typer.Exit(0 if planned.fits else 1)


def _cluster(gpus: str | None, nodes: int, host_memory: str | None, address: str | None) -> "Cluster":
    from rlpipe.plan import hardware

    if address:
        if gpus or host_memory or nodes > 1:
            stop("--cluster asks what there is; leave out --gpus, --nodes and --host-memory")
        from rlpipe.runtime.dashboard import machines

        return machines(address)
    if gpus is None:
        if nodes > 1:
            stop("--nodes says how many, and --gpus what they have: --gpus 8x80GB, or --gpus 0")
        return _this_machine(host_memory)
    return hardware.cluster(gpus, nodes, host_memory)


def _this_machine(host_memory: str | None) -> "Cluster":
    from rlpipe.plan.hardware import Cluster, Node, amount
    from rlpipe.runtime import machine

    found = machine.find_gpus()
    each = min((gpu.memory_mib for gpu in found), default=0) * 2**20
    host = amount(host_memory) if host_memory else machine.free_memory()
    return Cluster((Node("this machine", len(found), each, host),), "this machine")


def _rates(machines: "Cluster", said: dict[str, float | None]) -> "Rates | None":
    from dataclasses import replace

    from rlpipe.plan.hardware import rates

    given = {name: value for name, value in said.items() if value is not None}
    return replace(rates(machines.on_gpu), **given) if given else None
