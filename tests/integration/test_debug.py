"""`--debug` on a real terminal: breakpoints stop in pdb, and a failure shows one traceback, which ends where it was."""

import json
from pathlib import Path

import pytest
from online_runs import RECIPE, REWARD, events, metrics_of
from terminals import PROMPT, Terminal

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def without_the_debugger_of_ray(monkeypatch):
    """A process that was connected to Ray, as the one of the tests may have been, names Ray's to its children."""
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)


STOPPING_REWARD = """
seen = []


def share(completions, **columns):
    rewards = [sum(c.isdigit() for c in text) / 6 for text in completions]
    if not seen:
        seen.append(breakpoint())
    return rewards
"""

STOPS = """
import functools

from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.cli import app
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.training.policy import Policy


def stops_in(owner, name):
    real = getattr(owner, name)

    @functools.wraps(real)
    def stopping(self, *arguments, **named):
        where = f"{owner.__name__}.{name}"
        setattr(owner, name, real)  # once
        breakpoint()
        return real(self, *arguments, **named)

    setattr(owner, name, stopping)


stops_in(Policy, "export")
stops_in(TransformersEngine, "submit")
stops_in(OnlineAlgorithm, "loss")
app(["run", "recipe.yaml", "schedule.steps=2", "--debug", "--run-dir", "run"])
"""

FAILS = """
from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.cli import app


def loss(self, **tensors):
    return no_such_name  # the user's line


OnlineAlgorithm.loss = loss
app(["run", "recipe.yaml", "--debug", "--run-dir", "run"])
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_breakpoints_stop_in_roles_rewards_and_losses_and_q_ends_a_run_that_can_go_on(folder, warm_rlpipe):
    (folder / "digits.py").write_text(STOPPING_REWARD)
    (folder / "stops.py").write_text(STOPS)
    terminal = Terminal(warm_rlpipe, {"python": str(folder / "stops.py")}, folder)
    for where in ("Policy.export", "TransformersEngine.submit"):
        terminal.sees(PROMPT)
        assert f"'{where}'" in terminal.answers("p where")
        terminal.types("c")
    assert "digits.py" in terminal.sees(PROMPT)
    rewards = json.loads(terminal.answers("p rewards").split("\n")[1])
    assert len(rewards) in (1, 2, 4) and all(0 <= reward <= 1 for reward in rewards)
    terminal.types("c")
    terminal.sees(PROMPT)
    assert terminal.is_still(0.5), "nothing is drawn over the prompt"
    assert "'OnlineAlgorithm.loss'" in terminal.answers("p where")
    assert "torch.Size([" in terminal.answers("p named['logprobs_BT'].shape")
    terminal.types("q")
    assert terminal.ends() == 130
    assert "interrupted after" in terminal.shown and "stopped in the debugger" in terminal.shown
    assert "Stopped." in terminal.shown and "Traceback" not in terminal.shown
    assert [event["status"] for event in events(folder / "run", "run_finished")] == ["interrupted"]
    assert events(folder / "run", "commit") == [] and events(folder / "run", "fault") == []

    (folder / "digits.py").write_text(REWARD)
    done = warm_rlpipe.rlpipe(["resume", "run", "--debug"], folder)
    assert done.code == 0, done.output
    assert sorted(metrics_of(folder / "run")) == [1, 2]


def test_a_failure_shows_one_traceback_that_ends_at_the_line(folder, warm_rlpipe):
    (folder / "fails.py").write_text(FAILS)
    done = warm_rlpipe.python(folder / "fails.py", folder)
    assert done.code == 1
    lines = done.output[done.output.index("Traceback") :].splitlines()
    assert done.output.count("Traceback") == 1
    assert lines[-1].startswith("NameError: name 'no_such_name' is not defined")
    assert "return no_such_name  # the user's line" in "\n".join(lines[-4:-1])
    frames = [line for line in lines if line.startswith("  File ")]
    assert any("rlpipe/training/policy.py" in frame for frame in frames)
    hidden = ("/typer/", "/click/", "rlpipe/runtime/", "rlpipe/cli", "online/gang.py", "contextlib.py", "runpy.py")
    assert [frame for frame in frames if any(part in frame for part in hidden)] == []
    assert len(frames) == len(set(frames)), "no frame twice"


def test_what_a_reward_raised_is_shown_once_with_its_line(folder, warm_rlpipe):
    (folder / "digits.py").write_text("def share(completions, **columns):\n    return 1 / 0  # the user's line\n")
    done = warm_rlpipe.rlpipe(["run", "recipe.yaml", "--debug", "--run-dir", "run"], folder)
    assert done.code == 1
    assert done.output.count("Traceback") == done.output.count("return 1 / 0  # the user's line") == 1
    assert "rlpipe/rewards/killable.py" not in done.output
    assert done.output.rstrip().splitlines()[-1].startswith("Mend the reward or the data")
