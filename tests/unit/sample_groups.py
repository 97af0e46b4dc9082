"""Groups made by hand, for the tests of rewards, ledger and rollouts."""

import numpy as np

from rlpipe.data.flow import FinishReason, Group, Prompt, Trajectory, VersionSpan


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
