"""Log-probabilities of answers that are there, under whatever model the engines serve."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rlpipe.data.flow import Group, Tokens, Trajectory
from rlpipe.models.load import ModelError
from rlpipe.pipelines.evaluating.served import Served
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Handle, Within, results

POSITIONS = 2048
"""Of one call: an engine computes the probabilities of all tokens of the vocabulary at each of them."""


def logprobs(
    model: Served,
    engines: Sequence[Handle[RolloutWorker]],
    groups: Sequence[Group],
    progress: Callable[[str], None] = lambda says: None,
) -> list[list[np.ndarray]]:
    """By prompt and sample, of each token that a model wrote, at temperature 1. Of an answer that fills the context the
    last token is left out, as an engine looks at no more.

    `model` is whose recipe says how long sequences and waits may be; the engines decide whose probabilities it is."""
    longest = min(model.recipe.rollout.max_model_len or model.model_length, model.model_length) - 1
    trajectories = [t for group in groups for t in group.trajectories]
    sequences = [np.concatenate([t.prompt_tokens, t.response_tokens])[:longest].astype(np.int32) for t in trajectories]
    answers: list[np.ndarray] = []
    parts, within = list(_parts(sequences)), Within("rollout", model.recipe.deadlines.rollout)
    for start in range(0, len(parts), len(engines)):  # a call behind another one would use up its time waiting
        answers += _probed(within, engines, parts[start : start + len(engines)])
        progress(f"{len(answers)}/{len(sequences)}")
    written = iter([_written(t, row) for t, row in zip(trajectories, answers, strict=True)])
    return [[next(written) for _ in group.trajectories] for group in groups]


def _probed(
    within: Within, engines: Sequence[Handle[RolloutWorker]], parts: Sequence[list[Tokens]]
) -> list[np.ndarray]:
    """Each part by another engine."""
    calls = [engine.call(within, RolloutWorker.probe, part) for engine, part in zip(engines, parts, strict=False)]
    return [row for rows in results(calls) for row in rows]


def _parts(sequences: list[Tokens]) -> Iterator[list[Tokens]]:
    """In their order, padded to the longest of each part."""
    part: list[Tokens] = []
    for sequence in sequences:
        widest = max(len(sequence), *(len(other) for other in part)) if part else len(sequence)
        if part and widest * (len(part) + 1) > POSITIONS:
            yield part
            part = []
        part.append(sequence)
    if part:
        yield part


def _written(trajectory: Trajectory, row: np.ndarray) -> np.ndarray:
    """Of the log-probabilities of tokens 1.. of prompt and response, those of what the model wrote."""
    of_response = row[len(trajectory.prompt_tokens) - 1 :]
    return of_response[trajectory.response_mask[: len(of_response)].astype(bool)].astype(np.float32)


def check_vocabularies(models: Iterable[Served], reference: Served) -> None:
    """Raises `ModelError` for a model whose tokens are others than the reference's."""
    for model in models:
        if model.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
            raise ModelError(
                f"reference={reference.name} has another vocabulary than models.{model.name}, whose answers it is to "
                "read token by token; leave reference out, or that model"
            )
