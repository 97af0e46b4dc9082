"""Responses as text, for rewards and for people."""

from collections.abc import Callable, Sequence

from rlpipe.data.flow import Said, Tokens, Trajectory

Decode = Callable[[list[Tokens]], list[str]]
"""Texts of token sequences, without special tokens."""


def completions(trajectories: Sequence[Trajectory], decode: Decode) -> tuple[str, ...]:
    """Each response; with an environment, the policy's last turn."""
    return tuple(decode([t.response_tokens[t.episode.starts[-1] if t.episode else 0 :] for t in trajectories]))


def conversations(trajectories: Sequence[Trajectory], decode: Decode) -> tuple[tuple[Said, ...], ...]:
    """Each response as messages, from the policy's first turn on; nothing without an environment."""
    return tuple(_conversation(t, decode) for t in trajectories) if trajectories[0].episode else ()


def _conversation(trajectory: Trajectory, decode: Decode) -> tuple[Said, ...]:
    episode = trajectory.episode
    spans = zip(episode.starts, episode.ends, strict=True)
    own = [Said("assistant", text) for text in decode([trajectory.response_tokens[a:b] for a, b in spans])]
    between = [[said] for said in episode.replies] + [[]]
    return tuple(said for turn, replies in zip(own, between, strict=True) for said in (turn, *replies))


def script(turns: Sequence[Said]) -> str:
    """Several turns as one text, a line for each: the policy's as they are, what others say in brackets."""
    return "\n".join(t.text if t.role == "assistant" else f"[{t.role}: {t.text}]" for t in turns)
