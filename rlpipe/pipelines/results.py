"""What a person names on the command line (a run, a model, an adapter, a hub id) as a folder on this machine."""

from pathlib import Path

from rlpipe.models.folders import adapter_settings, is_adapter, is_model
from rlpipe.models.load import ModelError, local_folder
from rlpipe.models.merge_adapters import UNMERGEABLE
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL
from rlpipe.recipe.model import PretrainedModel
from rlpipe.runtime.machine import command


def find(named: str, adapter: bool = False) -> Path:
    """The folder of a model or an adapter. A run directory stands for its trained model, or with `adapter` or where the
    adapter is all it made, for its trained adapter. Raises `ModelError` for anything else, saying what is there."""
    folder = Path(named).expanduser()
    parts = [folder, *(folder / part for part in ([] if adapter else [FINAL_MODEL]) + [FINAL_ADAPTER])]
    found = next((part for part in parts if is_adapter(part) or is_model(part)), None)
    if found is not None:
        return found
    if folder.is_dir():
        raise ModelError(f"{named} holds neither a model nor {_what(adapter)}{_instead(folder)}")
    if folder.is_absolute() or named.count("/") != 1 or named.startswith((".", "~")):
        raise ModelError(f"there is no folder {named}")
    return local_folder(PretrainedModel(path=named))


def find_adapter(named: str) -> Path:
    """As `find`, for what has to be an adapter."""
    folder = find(named, adapter=True)
    if not is_adapter(folder):
        raise ModelError(f"{named} is not an adapter: {folder} has no adapter_config.json")
    return folder


def find_model(named: str) -> Path:
    """As `find`, for what has to be a whole model."""
    folder = find(named)
    if is_adapter(folder):
        raise ModelError(f"{named} is not a whole model: {folder} is an adapter")
    if not is_model(folder):
        raise ModelError(f"{named} is not a whole model: {folder} has no config.json")
    return folder


def refuse_existing(out: Path, sources: list[Path], force: bool) -> None:
    """Raises `ModelError` if writing to `out` would destroy something that nobody has given up."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if any(out.resolve() in (source.resolve(), *source.resolve().parents) for source in sources):
        raise ModelError(f"{out} is what is read, or holds it; give another --out")
    if not force:
        raise ModelError(f"{out} exists and is left alone; give another --out, or --force to replace it")
    if not (is_model(out) or is_adapter(out)):
        raise ModelError(f"{out} is no model or adapter folder, so that --force does not remove it; give another --out")


def written(folder: Path) -> str:
    """What a folder holds, for people: its name, its kind, its size."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{folder} ({'adapter' if is_adapter(folder) else 'model'}, {size / 1e6:,.1f} MB of safetensors)"


def served_by(folder: Path) -> str:
    """The shell command with which vLLM serves a folder, or why it cannot."""
    vllm = command("vllm")
    if not is_adapter(folder):
        return f"{vllm} serve {folder}"
    settings = adapter_settings(folder)
    unserved = [key for key in ("use_dora", "modules_to_save") if settings.get(key)]
    unserved += ["bias"] if settings.get("bias", "none") != "none" else []
    if settings["peft_type"] in UNMERGEABLE:
        return f"(vLLM does not serve it; {command('rlpipe')} chat {folder})"
    if settings["peft_type"] != "LORA" or unserved:
        kind = unserved[0] if unserved else settings["peft_type"]
        return f"(vLLM does not serve adapters with {kind}; without --adapter-only the merged model is written)"
    base = settings["base_model_name_or_path"]
    rank = max(settings["r"], *(settings.get("rank_pattern") or {"": 0}).values())
    served = next((size for size in VLLM_RANKS if size >= rank), rank)
    return f"{vllm} serve {base} --enable-lora --max-lora-rank {served} --lora-modules {folder.name}={folder}"


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""


def _what(adapter: bool) -> str:
    return f"an adapter (no {FINAL_ADAPTER}/)" if adapter else f"a trained one (no {FINAL_MODEL}/)"


def _instead(folder: Path) -> str:
    made = (path for part in (FINAL_MODEL, FINAL_ADAPTER) for path in folder.glob(f"stages/*/{part}"))
    stages = sorted({str(path.parent) for path in made})
    return f"; its stages do: {', '.join(stages)}" if stages else ""
