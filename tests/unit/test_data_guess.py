"""Games of guess-the-number: rules, spread, and how they become examples."""

from collections import Counter

from rlpipe.data.examples import IGNORED, encode
from rlpipe.data.guess import games, hint
from rlpipe.data.source import load_records
from rlpipe.models.scratch import build_tokenizer
from rlpipe.recipe.data import GuessNumberData


def data(**changes):
    return GuessNumberData(kind="guess_number", **{"games": 200, "heldout": 32, **changes})


def test_games_keep_to_the_rules():
    for record in games(data(largest=9, max_turns=5))[0]:
        secret, game = int(record.fields["answer"]), record.fields["completion"]
        assert record.fields["prompt"] == "0-9" and 0 <= secret <= 9
        guesses = [int(message["content"]) for message in game[::2]]
        assert [message["role"] for message in game] == (["assistant", "user"] * 5)[: len(game)]
        assert [message["content"] for message in game[1::2]] == [hint(guess, secret) for guess in guesses[:-1]]
        assert secret not in guesses[:-1]
        assert guesses[-1] == secret or len(guesses) == 5


def test_a_player_who_creeps_finds_the_number_less_often():
    def found(creeping):
        rows = games(data(games=1000, creeping=creeping, max_turns=5))[0]
        return sum(r.fields["completion"][-1]["content"] == r.fields["answer"] for r in rows) / len(rows)

    assert found(1.0) < 0.4 < 0.5 < found(0.0)


def test_held_out_numbers_are_spread_evenly_and_the_seed_decides_all():
    train, heldout = games(data(largest=9, heldout=30))
    assert set(Counter(r.fields["answer"] for r in heldout).values()) == {3}
    assert [r.fields for r in train] == [r.fields for r in games(data(largest=9, heldout=30))[0]]
    assert [r.fields for r in train] != [r.fields for r in games(data(largest=9, seed=1))[0]]


def test_stages_that_play_differently_are_asked_the_same_numbers():
    """Else the table at the end of a pipeline could not set them side by side."""
    one, other = (
        games(data(largest=9, heldout=30, **changes))[1] for changes in ({}, {"max_turns": 3, "creeping": 0.1})
    )
    assert [r.fields["answer"] for r in one] == [r.fields["answer"] for r in other]
    assert len({r.fields["answer"] for r in one[:10]}) == 10


def test_only_the_players_own_turns_are_in_the_loss():
    records = load_records(data(games=20), only_prompts=False)
    tokenizer = build_tokenizer()
    for example, record in zip(encode(records.train, records, tokenizer, "assistant"), records.train, strict=True):
        learnt = tokenizer.decode([label for label in example.labels if label != IGNORED])
        said = [message["content"] for message in record.fields["completion"] if message["role"] == "assistant"]
        assert learnt == "".join(f"{text}<|end|>" for text in said)
