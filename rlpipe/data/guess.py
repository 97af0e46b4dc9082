"""Guess the number: its rules, secret numbers, and games of a player who guesses at random."""

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
    number. `seed` decides all of it."""
    # A text as the seed: hashed by SHA-512, the same in every Python version that has these methods.
    rng = random.Random(f"guess/{data.seed}")
    secrets = [rng.randint(data.smallest, data.largest) for _ in range(data.games)]
    train = [_record(secret, rng, data, f"training game {i}") for i, secret in enumerate(secrets, 1)]
    count = data.largest - data.smallest + 1
    spread = [data.smallest + i % count for i in range(data.heldout)]
    rng.shuffle(spread)
    heldout = [_record(secret, rng, data, f"held-out game {i}") for i, secret in enumerate(spread, 1)]
    return train, heldout


def _record(secret: int, rng: random.Random, data: GuessNumberData, origin: str) -> Record:
    prompt = f"{data.smallest}-{data.largest}"
    return Record({"prompt": prompt, "completion": _game(secret, rng, data), "answer": str(secret)}, origin)


def _game(secret: int, rng: random.Random, data: GuessNumberData) -> list[dict[str, Any]]:
    low, high, messages = data.smallest, data.largest, []
    for turn in range(data.max_turns):
        heeds = rng.random() < data.attention
        guess = rng.randint(low, high) if heeds else rng.randint(data.smallest, data.largest)
        messages.append({"role": "assistant", "content": str(guess)})
        if guess == secret or turn == data.max_turns - 1:
            break
        messages.append({"role": "user", "content": hint(guess, secret)})
        if guess < secret:
            low = max(low, guess + 1)
        else:
            high = min(high, guess - 1)
    return messages
