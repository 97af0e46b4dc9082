"""What was asked, as a key: as long as it is the same, so is the answer, and nobody is asked again.

A prompt's responses hang on the prompt, the model, how it is sampled and what its environment says; its labels on those
responses and on who judges them by what. Where a file of principles or a template is edited, the keys of those prompts
change that it concerns, and no others.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlpipe.data.flow import Group, Prompt
from rlpipe.data.judge_template import load
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.environment import SingleTurn
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe, ReadResponses
from rlpipe.recipe.rewards import ModelReward, PythonReward, RewardMix
from rlpipe.runtime.preflight.look import fingerprint

Concerns = Callable[[Prompt], Any]
"""What of a file concerns a prompt, as JSON-able values."""


def asked(stage: Stage, recipe: LabelRecipe, prompts: list[Prompt], part: str, concerns: Concerns) -> list[Prompt]:
    """The prompts under keys of what their responses hang on, each once: `part-KEY`."""
    about = _about_responses(stage, recipe)
    keyed = [replace(p, prompt_id=f"{part}-{_digest([about, *_content(recipe, p), concerns(p)])}") for p in prompts]
    return list({prompt.prompt_id: prompt for prompt in keyed}.values())


def judged(recipe: LabelRecipe, groups: list[Group], concerns: Concerns) -> list[Group]:
    """The groups under keys of what their labels hang on."""
    about = _about_labels(recipe.rewards)
    return [_judged(group, about, concerns) for group in groups]


def _judged(group: Group, about: Any, concerns: Concerns) -> Group:
    prompt = group.prompt
    said = [group.completions, [[t.role, t.text] for turns in group.conversations for t in turns]]
    digest = _digest([about, prompt.prompt_id, said, prompt.columns, concerns(prompt)])
    part = prompt.prompt_id.partition("-")[0]
    return replace(group, prompt=replace(prompt, prompt_id=f"{part}-{digest}"))


def _about_responses(stage: Stage, recipe: LabelRecipe) -> Any:
    if isinstance(recipe.responses, ReadResponses):
        return recipe.responses.model_dump()
    rollout = recipe.rollout
    how = [rollout.engine, rollout.max_new_tokens, rollout.temperature, list(stage.stop_token_ids), stage.dtype]
    environment = recipe.environment.model_dump(exclude={"path"})
    return [_model(stage.model_path), how, recipe.responses.model_dump(), recipe.seed, environment]


def _content(recipe: LabelRecipe, prompt: Prompt) -> list[Any]:
    """Columns count where an environment sees them, or where the responses stand in them."""
    seen = not isinstance(recipe.environment, SingleTurn) or isinstance(recipe.responses, ReadResponses)
    return [prompt.tokens.tolist(), prompt.columns if seen else None]


def _about_labels(mix: RewardMix) -> Any:
    """Who judges, and by what. How many processes do is not part of it."""
    return [_about_reward(reward.model_dump()) | _contents(reward) for reward in mix.mix]


_HOW = {"engines", "ranks", "processes", "requests", "threads", "resources", "deadline", "timeout", "max_restarts",
        "kv_cache_gib", "gpu_memory_utilization", "max_num_seqs", "questions_per_call", "tokens_per_batch",
        "tensor_parallel", "constitution", "requests_per_minute", "tokens_per_minute"}  # fmt: skip


def _about_reward(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in _HOW}
    return {key: _about_reward(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _contents(reward: Any) -> dict[str, Any]:
    """What stands in the files that a reward names."""
    match reward:
        case JudgeReward():
            template = load(reward.template)
            own = {"asks": [template.name, list(template.messages), template.options, template.values]}
            path = getattr(reward.by, "path", None)
            return own | ({"model": _model(path)} if path else {})
        case ModelReward():
            return {"model": _model(reward.path)}
        case PythonReward() if (file := Path(reward.function.rpartition(":")[0])).is_file():
            return {"code": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {}


def _model(path: str) -> list[str]:
    return [path, fingerprint(path)]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()
