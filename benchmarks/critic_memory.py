"""How much memory does a critic take that has an adapter: with a base model of its own, or on the policy's.

    python benchmarks/critic_memory.py --help

What is measured and how to read it: benchmarks/README.md.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

from typer import Option

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from publish import RANK, build  # noqa: E402
from step import machine, options  # noqa: E402
from step.tables import Grid  # noqa: E402

from rlpipe.recipe.adapter import LoraAdapter  # noqa: E402
from rlpipe.recipe.model import PretrainedModel  # noqa: E402

LORA = LoraAdapter(kind="lora", r=RANK)
app = options.application()


def measure(folder: Path, shared: bool) -> dict[str, int]:
    """Bytes of a process with a policy and a critic, after an update of each."""
    import psutil

    from rlpipe.recipe.algorithm import PRESETS
    from rlpipe.training.critic import Critic, CriticSpec
    from rlpipe.training.distributed import Rank
    from rlpipe.training.policy import Policy, PolicySpec

    model = PretrainedModel(path=str(folder))
    settings = PRESETS["ppo"](name="ppo").model_dump(exclude={"name", "group_size", "dynamic_sampling"})
    policy_spec = PolicySpec(model, str(folder), settings, 8, 1.0, 1, LORA, lends_base=shared, dtype="float32")
    critic_spec = CriticSpec(model, str(folder), 1, dtype="float32", adapter=LORA)
    policy = Policy(policy_spec, Rank())
    critic = Critic(critic_spec, Rank(), *([policy] if shared else []))
    shard = _shard()
    policy.update(shard)
    critic.update(shard)
    weights = {p.data_ptr(): p.nbytes for role in (policy, critic) for p in role._engine.model.parameters()}
    memory = psutil.Process().memory_info()
    return {"weights": sum(weights.values()), "resident": memory.rss, "peak": _peak()}


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _shard():
    """Two short sequences with everything an update reads."""
    import numpy as np

    from rlpipe.data.flow import TokenBatch
    from rlpipe.training.microbatch import plan_step

    mask_N = np.tile(np.array([0, 0, 1, 1, 1, 1], np.float32), 2)
    batch = TokenBatch(
        tokens_N=np.arange(6, 18, dtype=np.int32),
        offsets_B1=np.array([0, 6, 12]),
        mask_N=mask_N,
        behaviour_logprobs_N=-mask_N,
        advantages_N=mask_N,
        old_logprobs_N=-mask_N,
        reference_logprobs_N=-mask_N,
        values_N=0 * mask_N,
        returns_N=mask_N,
        weights_N=mask_N / 8,
    )
    return plan_step(batch, range(2), 1, 64, kl_coefficient=0.02)[0]


@app.command()
def main(
    size: Annotated[str, Option(help="small (2.8 M parameters) or large (113 M).")] = "large",
    out: options.Out = options.RESULTS,
    keep: options.Keep = None,
) -> None:
    """Measure the memory of a process with a LoRA policy and a LoRA critic, which have a base model each, or one."""
    ways = {"a base each": False, "one base": True}
    with (
        options.work_folder(keep) as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        processes.submit(build, size, folder / size).result()
        found = {way: processes.submit(measure, folder / size, shared).result() for way, shared in ways.items()}
    rows = tuple((way, *(f"{value / 2**20:,.0f}" for value in one.values())) for way, one in found.items())
    grid = Grid(f"{size}: policy and critic in one process", ("MiB", "weights", "resident", "peak"), rows)
    options.console.print(grid.rich())
    out.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine.describe(), "size": size, "bytes": found}
    (out / "critic_memory.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "critic_memory.md").write_text(grid.markdown())


if __name__ == "__main__":
    options.run(app)
