"""Groups made by hand, for the tests of rewards, ledger and rollouts."""

from dataclasses import replace

import numpy as np

from rlpipe.data.flow import FinishReason, Group, Prompt, Score, Trajectory, VersionSpan


def make_group(completions, columns=None, group_id="g", text="2+2="):
    prompt = Prompt("p", np.array([1, 2], np.int32), text, columns or {})
    trajectories = tuple(
        Trajectory(
            group_id, "p", i, prompt.tokens, np.array([7, 8 + i], np.int32), np.ones(2, np.int8),
            np.array([-0.5, -0.25], np.float32), (VersionSpan(0, 0),), FinishReason.STOP,
        )
        for i in range(len(completions))
    )  # fmt: skip
    return Group(group_id, prompt, trajectories, tuple(completions), ())


class CyclingCursor:
    """p0, p1, p2 over and over."""

    def __init__(self):
        self.drawn = 0

    def draw(self, count):
        numbers = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [(n // 3, self.prompt(f"p{n % 3}")) for n in numbers]

    def prompt(self, prompt_id):
        return Prompt(prompt_id, np.array([1, 2], np.int32), "2+2=")

    def state(self):
        return {"epoch": self.drawn // 3, "position": self.drawn % 3}

    def load(self, state):
        self.drawn = 3 * state["epoch"] + state["position"]


def answer(lease, *completions, outcomes=None):
    """To a lease; each completion is worth its length."""
    group = make_group(completions or ["x"], group_id=lease.lease_id)
    scores = tuple(Score(float(len(said)), {"right": float(len(said))}) for said in group.completions)
    trajectories = tuple(replace(t, prompt_id=lease.prompt.prompt_id) for t in group.trajectories)
    return replace(group, prompt=lease.prompt, trajectories=trajectories, outcomes=outcomes or scores)
