"""Does torch see the GPUs that Ray gives out?"""

from collections.abc import Mapping, Sequence

from rlpipe.runtime.check import Check, fail, ok, skip, warn
from rlpipe.runtime.preflight.nodes import ClusterNode
from rlpipe.runtime.preflight.probe import GpuSeen
from rlpipe.runtime.preflight.probes import LATE

NAME = "GPUs"
FIX = (
    "see what `nvidia-smi` and `rlpipe doctor` say there: a CPU build of torch, a driver too old for it, or a "
    "container without GPUs (docker run --gpus all); `ray start --num-gpus` must name what there is"
)


def check_gpus(
    nodes: Sequence[ClusterNode], seen: Mapping[ClusterNode, GpuSeen], listed: Mapping[str, Sequence[str]],
    silent: Mapping[ClusterNode, str],
) -> Check:  # fmt: skip
    """`nodes`: those with GPUs. `seen`: by a process with one reserved, where there was a free one. `listed`: what the
    driver software lists, by node id. `silent`: why such a process has said nothing."""
    if not nodes:
        return skip(NAME, "nothing of the recipe reserves one on this cluster")
    wrong = [f"{node.name}: {what}" for node, found in seen.items() if (what := _wrong(found))]
    wrong += [f"{node.name}: {why}" for node, why in silent.items() if not why.startswith(LATE)]
    wrong += [
        f"{node.name}: Ray gives out {node.resources['GPU']:g}, and nvidia-smi lists {len(listed[node.id])}"
        for node in nodes
        if node.id in listed and len(listed[node.id]) < node.resources["GPU"]
    ]
    if wrong:
        return fail(NAME, "\n".join(wrong), FIX)
    busy = [node.name for node in nodes if node not in seen]
    if busy:
        detail = f"no process got a GPU of {', '.join(busy)}, or it starts slowly: not looked at"
        return warn(NAME, detail, "wait for what runs there, or see `ray status`; the run itself waits for them, too")
    return ok(NAME, ", ".join(f"{node.name}: {node.resources['GPU']:g}" for node in nodes))


def _wrong(found: GpuSeen) -> str:
    if not found.visible:
        return f"Ray reserved {found.reserved} GPU, and torch (built for {found.torch}) sees none"
    if found.visible != found.reserved:
        return f"Ray reserved {found.reserved} GPU, and torch sees {found.visible}"
    return ""
