"""Which option an answer names: by the probabilities of its first token, or by what is written."""

import re
from collections.abc import Sequence

from rlpipe.data.flow import Failure
from rlpipe.rewards.judging.completion import Answer, Position
from rlpipe.rewards.judging.question import Choice


def check_options(options: Sequence[str]) -> None:
    """Raises ValueError unless the first token of an answer can tell the options apart."""
    folded = [_folded(option) for option in options]
    if len(options) < 2 or not all(folded):
        raise ValueError(f"a judge needs two options or more, none of them empty; found {_listed(options)}")
    for i, one in enumerate(folded):
        for j, other in enumerate(folded):
            if i != j and other.startswith(one):
                raise ValueError(
                    f"the option {options[i]!r} begins the option {options[j]!r}, so the first token of an answer "
                    "cannot tell them apart; name them by different letters or words"
                )


def by_probability(answer: Answer, options: Sequence[str], least_mass: float) -> Choice | Failure:
    """By the answer's first token that is not blank. A token counts for the option that it is, or that it begins and no
    other does, whatever its case and the spaces around it. What is beyond the server's likeliest tokens counts as 0.
    """
    weights = _weights(answer.positions, options)
    mass = sum(weights)
    if mass < least_mass or mass == 0:
        position = next((p for p in answer.positions if p.token.strip()), answer.positions[0])
        token, probability = max(position.candidates, key=lambda candidate: candidate[1])
        return Failure(
            "outside_choice",
            f"it would say {token!r} (probability {probability:.2g}), and has written {answer.text!r:.80}; "
            f"{_listed(options)} together have the probability {mass:.2g}, least_mass={least_mass:g}",
        )
    return Choice(tuple(weight / mass for weight in weights), min(mass, 1.0), answer.text)


def by_text(answer: Answer, options: Sequence[str], max_tokens: int) -> Choice | Failure:
    """1 for the one option that is named. A single letter counts as it is written, since `a` is a word, too; longer
    options in any case. What is missing of an answer that was cut might name another: such a one counts if it opens
    with the option and a mark, or is nothing else."""
    named = _named(answer.text, options)
    if len(named) != 1:
        names = _listed([options[i] for i in named]) if named else "none"
        cut = f", and was cut at max_tokens={max_tokens}" if answer.cut else ""
        return Failure("outside_choice", f"{answer.text!r:.200} names {names} of {_listed(options)}{cut}")
    [index] = named
    if answer.cut and not _opens(answer.text, options[index]):
        return Failure("outside_choice", f"{answer.text!r:.200} was cut at max_tokens={max_tokens}; raise it")
    return Choice(tuple(float(i == index) for i in range(len(options))), 1.0, answer.text)


def _weights(positions: Sequence[Position], options: Sequence[str]) -> list[float]:
    """Of each option, its probability: after blank tokens, if the answer begins with some, times that of these."""
    weights, reached = [0.0] * len(options), 1.0
    for i, position in enumerate(positions):
        written = "".join(later.token for later in positions[i:])
        for token, probability in position.candidates:
            index = _meant(token, options)
            if index is not None and (token != position.token or _is_or_begins(written, options[index])):
                weights[index] += reached * probability
        if position.token.strip():
            break
        reached *= position.probability
    return weights


def _meant(token: str, options: Sequence[str]) -> int | None:
    """The option that the token is, or begins as no other does."""
    start = _folded(token)
    begun = [i for i, option in enumerate(options) if start and _folded(option).startswith(start)]
    return begun[0] if len(begun) == 1 else None


def _is_or_begins(written: str, option: str) -> bool:
    """Whether an answer of which this is known goes on as the option does: `Answer: B` begins with `A` and does not."""
    text, whole = _folded(written), _folded(option)
    return whole.startswith(text) or (text.startswith(whole) and not text[len(whole) : len(whole) + 1].isalnum())


def _named(text: str, options: Sequence[str]) -> list[int]:
    """The options in a text, as words of their own and not as a part of another option."""
    alone = [i for i, option in enumerate(options) if _is(text, option)]
    either = "|".join(map(_pattern, sorted(options, key=len, reverse=True)))
    found = {_folded(match) for match in re.findall(rf"(?<!\w)(?:{either})(?!\w)", text)}
    return alone or [i for i, option in enumerate(options) if _folded(option) in found]


def _opens(text: str, option: str) -> bool:
    return _is(text, option) or re.match(rf"\W*{_pattern(option)}(?![\w ])", text) is not None


def _is(text: str, option: str) -> bool:
    """Marks around it aside."""
    return _folded(re.sub(r"^\W+|\W+$", "", text)) == _folded(option)


def _pattern(option: str) -> str:
    word = re.escape(option.strip())
    return word if len(option.strip()) == 1 else f"(?i:{word})"


def _folded(text: str) -> str:
    return text.strip().casefold()


def _listed(options: Sequence[str]) -> str:
    return ", ".join(options)
