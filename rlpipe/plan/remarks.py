"""What runs, and may not be what was meant."""

from collections.abc import Iterator

from rlpipe.plan.hardware import GIB
from rlpipe.plan.lengths import sequence_of_offline
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.rl_roles import RlRoles
from rlpipe.plan.roles import Setting
from rlpipe.plan.seconds import recomputes
from rlpipe.recipe.model import Model, PretrainedModel
from rlpipe.recipe.tasks import OfflineRecipe, RlRecipe


def of_rl(recipe: RlRecipe, roles: RlRoles, setting: Setting) -> list[str]:
    """Of an RL task."""
    return [
        *_of_model(recipe.model, roles.model),
        *_of_lengths(recipe, roles),
        *_of_training(recipe),
        *_of_cache(recipe, roles),
        *_of_places(recipe, roles, setting),
    ]


def of_offline(recipe: OfflineRecipe, model: ModelFacts, setting: Setting) -> list[str]:
    """Of an offline task."""
    found = list(_of_model(recipe.model, model))
    if recipe.train.max_length > model.context:
        found.append(
            f"train.max_length={recipe.train.max_length} is more than the model's {model.context} tokens; planned with "
            f"{sequence_of_offline(recipe, model.context)}"
        )
    if recipe.train.ranks == 1 and recipe.train.zero_stage:
        found.append(_alone("train", recipe.train.zero_stage))
    return found


def _of_model(spec: Model, model: ModelFacts) -> Iterator[str]:
    if spec.attn_implementation == "eager":
        yield (
            "model.attn_implementation=eager keeps the scores of every pair of tokens, heads x tokens x tokens in each "
            "layer, which is not planned here: with long sequences it is most of all memory; sdpa keeps none"
        )
    size, count = model.file_bytes, model.shapes.size(scores=False)
    if size and isinstance(spec, PretrainedModel):
        whole = {b * count for b in (1, 2, 4)} | {
            b * (count + model.shapes.hidden * model.shapes.vocabulary) for b in (2, 4)
        }
        near = min(abs(size / one - 1) for one in whole)
        if near > 0.02:
            yield (
                f"the files of {model.name} hold {size / GIB:.2f} GiB, which is not what {count:,} parameters take in "
                "1, 2 or 4 bytes each: the model may be another one than its config.json says"
            )


def _alone(key: str, stage: int) -> str:
    return (
        f"{key}.zero_stage={stage} with {key}.ranks=1 has nobody to share with, and takes DeepSpeed's buffers and "
        f"copies on top: set {key}.zero_stage to 0, unless something is offloaded"
    )


def _of_lengths(recipe: RlRecipe, roles: RlRoles) -> Iterator[str]:
    budget, whole = recipe.train.tokens_per_micro_batch, roles.lengths.whole
    if whole > budget:
        yield (
            f"a sequence may have {whole:,} tokens, more than train.tokens_per_micro_batch={budget:,}: it is alone in "
            "its micro-batch, and memory is planned for it"
        )
    if roles.lengths.response < recipe.longest_response:
        yield (
            f"responses of {recipe.longest_response:,} tokens do not fit into the model's "
            f"{roles.model.context:,}; planned with {roles.lengths.response:,}"
        )


def _of_training(recipe: RlRecipe) -> Iterator[str]:
    updates = recipe.train.minibatches * recipe.train.epochs
    if recomputes(recipe):
        why = f"a batch makes {updates} optimizer steps" if updates > 1 else "the KL is in the reward"
        yield f"the policy is asked for log-probabilities again before it learns ({why}): one forward pass more a step"
    if recipe.train.ranks == 1 and recipe.train.zero_stage and not recipe.train.offload_optimizer:
        yield _alone("train", recipe.train.zero_stage)
    if recipe.run.max_staleness:
        yield (
            f"run.max_staleness={recipe.run.max_staleness}: sampling and training run beside each other, so that a "
            "step takes as long as the longer of the two, and not their sum"
        )


def _of_cache(recipe: RlRecipe, roles: RlRoles) -> Iterator[str]:
    made, rollout = roles.generator, recipe.rollout
    samples = -(-recipe.schedule.prompts_per_step * recipe.algorithm.group_size // rollout.engines)
    wanted = min(rollout.max_num_seqs, samples)
    if not made.vllm or made.cache <= 0 or made.sequences >= wanted:
        return
    more = (wanted - made.sequences) * made.whole * made.token_bytes // made.parts
    key = f"rollout.kv_cache_gib={made.cache_gib + more / GIB:.1f}"
    if made.gpu_bytes:
        key = f"rollout.gpu_memory_utilization={made.utilization + more / made.gpu_bytes:.2f}"
        key = key if made.utilization + more / made.gpu_bytes <= 0.95 else "rollout.tensor_parallel, or another engine,"
    yield (
        f"the KV cache of an engine holds {made.sequences:,} sequences of {made.whole:,} tokens, and {wanted:,} are to "
        f"run at once (rollout.max_num_seqs={rollout.max_num_seqs}): the others wait, or are made again; {key} would "
        "hold them"
    )


def _of_places(recipe: RlRecipe, roles: RlRoles, setting: Setting) -> Iterator[str]:
    share = setting.gpus(recipe.rollout.resources)
    if not roles.generator.sleeps and 0 < share < 1 and roles.generator.vllm:
        yield (
            f"engines share GPUs (rollout.resources.gpus={share:g}): vLLM refuses to start where less than "
            f"rollout.gpu_memory_utilization={recipe.rollout.gpu_memory_utilization:g} of a GPU is free, and others "
            "may take their memory first"
        )
    if setting.on_gpu and not setting.gpus(recipe.train.resources):
        yield "the policy trains on CPUs (train.resources.gpus=0) though there are GPUs"
