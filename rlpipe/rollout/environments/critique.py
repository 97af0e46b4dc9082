"""Critique and revision by the principles of a constitution (Bai et al. 2022, arXiv 2212.08073, section 3.1).

    answer ──> critique request ──> critique ──> revision request ──> revision ──> critique request by the next one …

The last turn is the response that is kept. Everything said stays in the policy's context: unlike in the paper, a second
round sees the first one's critique, too.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rlpipe.data.flow import Failure
from rlpipe.recipe.constitution import Principle, ranked, read
from rlpipe.recipe.critique import PLACE, ConstitutionEnvironment, CritiqueExample, read_examples
from rlpipe.rollout.environments.environment import End, Reply, Response, Turn


@dataclass(slots=True)
class Rounds:
    """One episode."""

    principles: list[Principle]
    """One for each round."""
    turns: int = 0
    """Of the policy, so far."""


class CritiqueAndRevision:
    """Gives no reward. A turn that is cut off or empty, or for which there is no room, is a failure of its episode: a
    critique must never pass for an answer."""

    def __init__(self, recipe: ConstitutionEnvironment) -> None:
        """Reads the files. Raises RecipeError."""
        constitution = read(recipe.path)
        self._recipe, self._principles = recipe, constitution.about(recipe.tags)
        self._origin = constitution.origin | {"requests": recipe.requests_version}
        self._examples = _shown(read_examples(recipe.examples)) if recipe.examples else ""

    def reset(self, columns: dict[str, Any], seed: int) -> Rounds:
        return Rounds(self._drawn(columns["prompt"], columns["sample_index"]))

    def step(self, state: Rounds, response: Response) -> Turn | Failure:
        if not response.complete:
            why = f"{_name(state.turns)} was cut off at its limit of tokens: rollout.max_new_tokens, or the model's own"
            return Failure("unfinished", why)
        if not response.text.strip():
            return Failure("empty", f"{_name(state.turns)} has no text")
        state.turns += 1
        return self._request(state.principles, state.turns)

    def what_decides(self, prompt: str, samples: int) -> str:
        """A digest of everything that this environment would say in so many episodes of a rendered prompt: it changes
        where an edit of constitution, examples or requests changes that, and nowhere else."""
        said = [self._says(self._drawn(prompt, sample)) for sample in range(samples)]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def close(self) -> None: ...

    def _drawn(self, prompt: str, sample: int) -> list[Principle]:
        """Not by the sample's seed: this has to be known before the prompt has an id."""
        return ranked(self._principles, f"{sample}/{prompt}", self._recipe.seed)[: self._recipe.rounds]

    def _says(self, principles: list[Principle]) -> list[tuple[str, str]]:
        """(principle, request) of a whole episode."""
        turns = range(1, self._recipe.max_turns)
        return [(principles[(turn - 1) // 2].id, self._request(principles, turn).text) for turn in turns]

    def _request(self, principles: list[Principle], turns: int) -> Turn:
        """What is said after so many turns of the policy."""
        done, is_critiqued = divmod(turns - 1, 2)
        if done == self._recipe.rounds:
            return End()
        principle, recipe = principles[done], self._recipe
        text = (
            recipe.revision_request.replace(PLACE, principle.revision)
            if is_critiqued
            else recipe.critique_request.replace(PLACE, principle.critique)
        )
        asks = "revision" if is_critiqued else "critique"
        note = self._origin | {"principle": principle.id, "round": done + 1, "asks": asks}
        return Reply((self._examples if turns == 1 else "") + text, note=json.dumps(note), needed=True)


def _name(before: int) -> str:
    """What the policy says after so many turns of its own."""
    if not before:
        return "the answer"
    return f"the {'critique' if before % 2 else 'revision'} of round {(before + 1) // 2}"


def _shown(examples: list[CritiqueExample]) -> str:
    """Examples as the beginning of the first request."""
    rounds = [
        f"Example {number}\n\nQuestion: {one.prompt}\n\nAnswer: {one.answer}\n\nCritique: {one.critique}\n\n"
        f"New answer: {one.revision}\n\n"
        for number, one in enumerate(examples, 1)
    ]
    return f"Examples of how answers to other questions were criticised and rewritten:\n\n{''.join(rounds)}---\n\n"
