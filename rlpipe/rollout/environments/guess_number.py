"""Guess the number: the environment says `higher` or `lower` until the number is found or all guesses are used."""

from dataclasses import dataclass
from typing import Any

from rlpipe.data.guess import hint
from rlpipe.recipe.environment import GuessNumber as Recipe
from rlpipe.rollout.environments.environment import End, Reply, Response, Turn

LONGEST_GUESS = 20
"""Digits; longer ones are no guesses, and slow to read."""


@dataclass(slots=True)
class Game:
    """One episode."""

    secret: int
    guesses: int = 0


class GuessNumber:
    """Reward 1 for a number found, less `discount` for every guess after the first, 0 for a game lost. Components:
    `found` (1 or 0) and `guesses`."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def reset(self, columns: dict[str, Any], seed: int) -> Game:
        if "answer" not in columns:
            raise KeyError(f"the row has no column `answer` (it has {sorted(columns)}); see data.kind=guess_number")
        return Game(int(columns["answer"]))

    def step(self, state: Game, response: Response) -> Turn:
        state.guesses += 1
        guess = _number(response.text) if response.complete else None
        if guess == state.secret:
            found = 1.0 - self._recipe.discount * (state.guesses - 1)
            return End(found, {"found": 1.0, "guesses": float(state.guesses)})
        lost = {"found": 0.0, "guesses": float(state.guesses)}
        if state.guesses == self._recipe.max_turns:
            return End(0.0, lost)
        said = "not a number" if guess is None else hint(guess, state.secret)
        return Reply(said, reward=0.0, components=lost)

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def close(self) -> None: ...


def _number(text: str) -> int | None:
    digits = text.strip()
    plain = digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) <= LONGEST_GUESS
    return int(digits) if plain else None
