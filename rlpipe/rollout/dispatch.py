"""Which engine answers what: the one with the fewest tokens to come, or the one that has the prefix already."""

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence

from rlpipe.data.flow import GroupRequest, Trajectory
from rlpipe.rollout.seat import AskedGroup, Seat

RESPONSES = 1000
"""The length that is expected of a response is the mean over about so many."""
CONVERSATIONS = 65536
"""Of so many the engine is remembered; what is older is in no cache any more."""


class ExpectedLength:
    """Tokens that a response of one model takes, as far as those before it tell: a running mean."""

    def __init__(self) -> None:
        self._mean, self._heard = 0.0, 0

    def of(self, request: GroupRequest) -> int:
        """Of each response to this request; before there were any, the longest that is allowed."""
        longest = request.sampling.max_new_tokens
        return min(longest, max(1, math.ceil(self._mean))) if self._heard else longest

    def hear(self, trajectory: Trajectory) -> None:
        """Learn from a response."""
        self._heard = min(self._heard + 1, RESPONSES)
        self._mean += (len(trajectory.response_tokens) - self._mean) / self._heard


class Dispatch:
    """Of one model. All responses to a request go to one engine, which reads the prompt once; the turns of a
    conversation, too, as long as that engine serves."""

    def __init__(self) -> None:
        self.expected = ExpectedLength()
        self._homes: dict[str, Seat] = {}

    def ask(self, requests: Sequence[GroupRequest]) -> list[AskedGroup]:
        """These, with what they are expected to cost."""
        return [AskedGroup(request, self.expected.of(request)) for request in requests]

    def assign(self, groups: Sequence[AskedGroup], seats: Sequence[Seat]) -> dict[Seat, list[AskedGroup]]:
        """Give each group to one of `seats`, of which there is one at least. Each is told the cost at once."""
        shares: dict[Seat, list[AskedGroup]] = defaultdict(list)
        strangers: list[AskedGroup] = []
        for group in groups:
            home = self._homes.get(group.request.conversation)
            if home is not None and home.serves:
                _give(home, group, shares)
            else:
                strangers.append(group)
        loads = [(seat.tokens, place) for place, seat in enumerate(seats)]
        heapq.heapify(loads)
        for group in strangers:
            place = loads[0][1]
            _give(seats[place], group, shares)
            heapq.heapreplace(loads, (seats[place].tokens, place))
            self._remember(group.request.conversation, seats[place])
        return shares

    def _remember(self, conversation: str, seat: Seat) -> None:
        if not conversation:
            return
        self._homes.pop(conversation, None)
        self._homes[conversation] = seat
        if len(self._homes) > CONVERSATIONS:
            del self._homes[next(iter(self._homes))]


def _give(seat: Seat, group: AskedGroup, shares: dict[Seat, list[AskedGroup]]) -> None:
    seat.give(group)
    shares[seat].append(group)
