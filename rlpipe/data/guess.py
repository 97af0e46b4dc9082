"""Guess the number: its rules, secret numbers, and games of a timid player."""

import itertools
import random
from typing import Any

from rlpipe.data.records import Record
from rlpipe.recipe.data import GuessNumberData

HIGHER, LOWER = "higher", "lower"


def hint(guess: int, secret: int) -> str:
    """Where the secret number lies, for a guess that is wrong."""
    return HIGHER if secret > guess else LOWER


def games(data: GuessNumberData) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records: the prompt names the range, the completion is a game, and column `answer` the
    number. `seed` decides all of it; the held-out numbers are the same however the games are played."""
    # A text as the seed: hashed by SHA-512, the same in every Python version that has these methods.
    rng = random.Random(f"guess/{data.seed}")
    secrets = [rng.randint(data.smallest, data.largest) for _ in range(data.games)]
    train = [_record(secret, rng, data, f"training game {i}") for i, secret in enumerate(secrets, 1)]
    order = list(range(data.smallest, data.largest + 1))
    random.Random(f"guess/held-out/{data.seed}").shuffle(order)
    spread = itertools.islice(itertools.cycle(order), data.heldout)
    heldout = [_record(secret, rng, data, f"held-out game {i}") for i, secret in enumerate(spread, 1)]
    return train, heldout


def _record(secret: int, rng: random.Random, data: GuessNumberData, origin: str) -> Record:
    prompt = f"{data.smallest}-{data.largest}"
    return Record({"prompt": prompt, "completion": _game(secret, rng, data), "answer": str(secret)}, origin)


def _game(secret: int, rng: random.Random, data: GuessNumberData) -> list[dict[str, Any]]:
    low, high, messages = data.smallest, data.largest, []
    guess = rng.randint(low, high)
    while True:
        messages.append({"role": "assistant", "content": str(guess)})
        if guess == secret or len(messages) == 2 * data.max_turns - 1:
            return messages
        messages.append({"role": "user", "content": hint(guess, secret)})
        low, high, next_ = (guess + 1, high, guess + 1) if guess < secret else (low, guess - 1, guess - 1)
        guess = next_ if rng.random() < data.creeping else rng.randint(low, high)
