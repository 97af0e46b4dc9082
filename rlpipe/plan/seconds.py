"""How long a step may take, from rates that stand beside the answer. docs/memory.md has the formulas."""

from dataclasses import dataclass

from rlpipe.plan.architecture import Architecture
from rlpipe.plan.engines import Generator
from rlpipe.plan.hardware import Rates
from rlpipe.plan.lengths import Lengths
from rlpipe.plan.publishing import Sending, publishing
from rlpipe.plan.weights import Weights
from rlpipe.recipe.tasks import OfflineRecipe, RlRecipe

Seconds = dict[str, float]
"""By phase of a step."""


@dataclass(frozen=True, slots=True)
class Work:
    """A model that a rank trains."""

    shapes: Architecture
    held: Weights
    width: int
    ranks: int
    checkpointing: bool


def forward_flops(shapes: Architecture, tokens: float, length: float) -> float:
    """Of one forward pass: two for each weight that multiplies, and attention over half of `length` on average."""
    multiplied = shapes.layers * sum(one.inputs * one.outputs for one in shapes.layer.values())
    multiplied += shapes.hidden * shapes.vocabulary
    return tokens * (2 * multiplied + 2 * shapes.layers * shapes.query * length)


def update(work: Work, tokens: float, length: float, rates: Rates) -> float:
    """Seconds of forward and backward over `tokens` of the whole batch: the backward pass takes twice as much as the
    forward pass where all weights learn, and as much where they are frozen beneath an adapter; checkpointing adds a
    forward pass."""
    passes = 1 + (2 if work.held.frozen == 0 and not work.held.packed else 1) + work.checkpointing
    return passes * forward_flops(work.shapes, tokens, length) / (work.ranks * _speed(rates))


def reduction(work: Work, rates: Rates) -> float:
    """Seconds of one optimizer step's traffic between ranks: gradients and new weights travel once around a ring."""
    if work.ranks == 1:
        return 0.0
    return 2 * (work.ranks - 1) / work.ranks * work.width * work.held.trained / (rates.network * 1e9)


def optimizer(work: Work, rates: Rates) -> float:
    """Seconds of AdamW, which reads and writes weights, gradients and running means: 28 bytes a parameter."""
    return 28 * work.held.trained / work.ranks / (rates.bandwidth * 1e9)


def generation(engine: Generator, engines: int, prompts: int, group: int, lengths: Lengths, rates: Rates) -> Seconds:
    """Seconds of all responses at their greatest length: prompts are read once a group; then each token of all running
    sequences reads the weights once and their keys and values, or computes, whichever takes longer."""
    samples = -(-prompts * group // engines)
    together = max(1, min(samples, engine.max_num_seqs, engine.sequences or 1))
    rounds = -(-samples // together)
    prefill = forward_flops(engine.shapes, lengths.prompt, lengths.prompt) * -(-prompts // engines)
    cached = (lengths.prompt + lengths.response / 2) * engine.token_bytes * together
    read = (engine.width * engine.parameters + cached) / (engine.parts * rates.bandwidth * 1e9)
    computed = forward_flops(engine.shapes, together, 2 * lengths.whole) / (engine.parts * _speed(rates))
    return {
        "prefill": prefill / (engine.parts * _speed(rates)),
        "decoding": rounds * lengths.response * max(read, computed),
    }


def _speed(rates: Rates) -> float:
    return rates.tflops * rates.utilization * 1e12


def of_rl(
    recipe: RlRecipe,
    policy: Work,
    critic: Work | None,
    engine: Generator,
    lengths: Lengths,
    sending: Sending,
    rates: Rates,
) -> Seconds:
    """Of one RL step, all phases one after the other."""
    group, prompts = recipe.algorithm.group_size, recipe.schedule.prompts_per_step
    tokens, length = float(prompts * group * lengths.whole), float(lengths.whole)
    updates = recipe.train.minibatches * recipe.train.epochs
    found = generation(engine, recipe.rollout.engines, prompts, group, lengths, rates)
    asked = forward_flops(policy.shapes, tokens, length) / (policy.ranks * _speed(rates))
    if recipe.algorithm.needs_reference:
        found["reference"] = asked
    if recomputes(recipe):
        found["log-probabilities again"] = asked
    for name, work in (("policy", policy), ("critic", critic)):
        if work is not None:
            each = update(work, tokens, length, rates) * recipe.train.epochs
            found[name] = each + updates * (reduction(work, rates) + optimizer(work, rates))
    found["publishing"] = publishing(sending, rates)
    return found


def recomputes(recipe: RlRecipe) -> bool:
    """Whether the policy is asked for log-probabilities before it learns (`OnlineAlgorithm.needs_old_logprobs`)."""
    algorithm = recipe.algorithm
    in_reward = algorithm.kl.coefficient > 0 and algorithm.kl.placement == "reward"
    return recipe.train.minibatches * recipe.train.epochs > 1 or in_reward or algorithm.advantage.kind == "dpo"


def of_offline(recipe: OfflineRecipe, work: Work, tokens: float, length: float, rates: Rates, asks: bool) -> Seconds:
    """Of one optimizer step over `tokens`; `asks` says whether a reference answers, too."""
    found = {"training": update(work, tokens, length, rates) + reduction(work, rates) + optimizer(work, rates)}
    if asks:
        found["reference"] = forward_flops(work.shapes, tokens, length) / (work.ranks * _speed(rates))
    return found
