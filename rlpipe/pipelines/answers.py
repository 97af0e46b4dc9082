"""From requests to scored groups: engines answer, the reward stage scores, and everybody gets their own.

    ask(requests) ──> rollouts ──> rewards ──> told(group)

Sampling for the next steps and an evaluation may be under way at the same time, on the same engines and rewards.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rlpipe.data.flow import Group, GroupRequest, Prompt
from rlpipe.rewards.stage import RewardStage
from rlpipe.rollout import spoken
from rlpipe.rollout.episodes import Rollouts
from rlpipe.runtime.handle import Pending

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Told = Callable[[Group], None]

_SECONDS_PER_LOOK_AT_REWARDS = 0.05
"""How long engines or other calls are waited for while rewards are computed, which tell nobody that they are done."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt to be answered by a model's engines."""

    request: GroupRequest
    prompt: Prompt


class Answers:
    """See above. Whatever engines and rewards raise is raised by `look`."""

    def __init__(
        self, model: str, rollouts: Rollouts, rewards: RewardStage, tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        self._model, self._rollouts, self._rewards, self._tokenizer = model, rollouts, rewards, tokenizer
        self._asked: dict[str, tuple[Prompt, Told]] = {}
        self._unscored: list[Group] | None = None
        """While rewards are not asked: what they are to score later."""

    def ask(self, asks: Sequence[Ask], told: Told) -> None:
        """Have these answered and scored; `told` gets each group as soon as it is, inside of `look`."""
        self._asked |= {ask.request.group_id: (ask.prompt, told) for ask in asks}
        self._rollouts.submit(self._model, [ask.request for ask in asks])

    def look(self, seconds: float, also: Sequence[Pending[Any]] = ()) -> None:
        """See what engines and rewards have, waiting up to `seconds` for something, or until one of `also`, which are
        calls of other roles, is finished."""
        busy, scoring = bool(also or self.generating()), self._rewards.outstanding
        if not busy and not scoring:
            time.sleep(seconds)
        if busy:
            self._hear(min(seconds, _SECONDS_PER_LOOK_AT_REWARDS) if scoring else seconds, also)
        for group in self._rewards.finished(0.0 if busy else seconds):
            if asked := self._asked.pop(group.group_id, None):
                asked[1](group)

    def work_off(self) -> None:
        """Under --debug, where rewards are computed by whoever waits for them, compute those that are due."""
        self._rewards.work_off()

    def generating(self) -> AbstractSet[str]:
        """The ids of what engines are to answer; the set goes on changing."""
        return self._rollouts.asked()

    def scoring(self) -> set[str]:
        """The ids of what rewards have in hand, or will have."""
        return self._rewards.asked() | {group.group_id for group in self._unscored or ()}

    def forget(self, group_ids: Iterable[str]) -> None:
        """These are not asked for any more. Ids that are not outstanding are ignored."""
        doomed = [group_id for group_id in group_ids if self._asked.pop(group_id, None)]
        self._rollouts.abort(doomed)

    def pause_scoring(self) -> None:
        """Rewards are lost with the processes they run in: what they have in hand waits, and what comes meanwhile."""
        self._unscored = [*(self._unscored or ()), *self._rewards.forget()]

    def resume_scoring(self) -> None:
        """They are there again, and are asked anew."""
        unscored, self._unscored = self._unscored or [], None
        for group in unscored:
            if group.group_id in self._asked:
                self._rewards.submit(group)

    def _hear(self, seconds: float, also: Sequence[Pending[Any]]) -> None:
        """What engines have finished goes to the rewards."""
        for trajectories in self._rollouts.finished(seconds, also):
            if asked := self._asked.get(trajectories[0].group_id):
                to = self._rewards.submit if self._unscored is None else self._unscored.append
                to(group_of(asked[0], trajectories, self._tokenizer))


def group_of(prompt: Prompt, trajectories: Sequence[Any], tokenizer: "PreTrainedTokenizerBase") -> Group:
    """A finished group, decoded for rewards and people, still without outcomes."""
    decode = partial(tokenizer.batch_decode, skip_special_tokens=True)
    texts, conversations = spoken.completions(trajectories, decode), spoken.conversations(trajectories, decode)
    return Group(trajectories[0].group_id, prompt, tuple(trajectories), texts, (), conversations)
