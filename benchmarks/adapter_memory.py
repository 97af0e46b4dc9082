"""Memory of full fine-tuning, LoRA and QLoRA on one model, in bytes and beside each other.

    python benchmarks/adapter_memory.py

Each way trains a Qwen2 of 113 M parameters (random weights, float32) for two steps under DeepSpeed, in a process of
its own. Weights, gradients and optimizer states are counted from their tensors; the peak is the process's largest
resident memory in training, above what it was with everything imported and nothing loaded (Linux).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.recipe.model import PretrainedModel, ScratchModel
from rlpipe.recipe.quantization import Quantization
from rlpipe.recipe.training import Optimizer

MODEL = ScratchModel(
    scratch="qwen2", hidden_size=768, layers=12, heads=12, kv_heads=12, intermediate_size=3072,
    tie_word_embeddings=True,
)  # fmt: skip
LORA = LoraAdapter(kind="lora", r=16, lora_alpha=32)
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, adamw_8bit": {"optim": "adamw_8bit"},
    "LoRA": {"adapter": LORA},
    "QLoRA": {"adapter": LORA, "quantization": Quantization()},
    "QLoRA, paged_adamw_8bit": {"adapter": LORA, "quantization": Quantization(), "optim": "paged_adamw_8bit"},
}


def measured(way: str, folder: str, batch: int, length: int) -> dict[str, int]:
    """Bytes of one way, in this process."""
    import torch

    from rlpipe.models.adapters import adapt
    from rlpipe.models.load import load_causal_lm
    from rlpipe.training.distributed import Rank, join
    from rlpipe.training.engine import TrainingEngine
    from rlpipe.training.sharding import Sharding

    settings, dtype = WAYS[way], torch.float32
    join(Rank(), 60)
    start = _resident("VmRSS")
    spec = PretrainedModel(path=folder, quantization=settings.get("quantization"))
    model = load_causal_lm(spec, folder, dtype)
    if "adapter" in settings:
        model = adapt(model, settings["adapter"], seed=0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    engine = TrainingEngine(model, dtype, Sharding(), Optimizer(optim=settings.get("optim", "adamw_torch")), 2)
    for _ in range(2):
        ids = torch.randint(6, 200, (batch, length))
        engine.backward(engine.module(input_ids=ids, labels=ids, use_cache=False).loss, last=True)
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        engine.step()
    states = [value for state in engine._adamw.state.values() for value in state.values() if torch.is_tensor(value)]
    return {
        "weights": sum(map(_taken, model.parameters())),
        "gradients": gradients,
        "optimizer": sum({value.data_ptr(): value.nbytes for value in states}.values()),
        "peak": _resident("VmHWM") - start,
    }


def _taken(parameter: Any) -> int:
    """Bytes of a parameter with the scales of its blocks."""
    state = getattr(parameter, "quant_state", None)
    scales = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return parameter.nbytes + sum(scale.nbytes for scale in scales)


def _resident(figure: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(figure)]
    return int(line.split()[1]) * 1024


def _in_a_process_of_its_own(way: str, folder: str, arguments: argparse.Namespace) -> dict[str, int]:
    given = ["--way", way, "--folder", folder, "--batch", str(arguments.batch), "--length", str(arguments.length)]
    done = subprocess.run([sys.executable, __file__, *given], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _table(found: dict[str, dict[str, int]]) -> str:
    columns = ("weights", "gradients", "optimizer", "peak")
    lines = ["| | " + " | ".join(f"{name}, MiB" for name in columns) + " | peak, of full |", "|---" * 6 + "|"]
    for way, taken in found.items():
        cells = [f"{taken[name] / 2**20:,.0f}" for name in columns]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {taken['peak'] / found['full']['peak']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--way", choices=WAYS, help="measure this way alone, here, and print it as JSON")
    parser.add_argument("--folder", help="the model that --way takes")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments.way, arguments.folder, arguments.batch, arguments.length)))
        return
    from rlpipe.models.scratch import build

    with tempfile.TemporaryDirectory() as folder:
        build(MODEL, 0, Path(folder))
        found = {}
        for way in WAYS:
            found[way] = _in_a_process_of_its_own(way, folder, arguments)
            print(way, found[way], file=sys.stderr, flush=True)
    print(_table(found))


if __name__ == "__main__":
    main()
