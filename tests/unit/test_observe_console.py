"""The terminal views, drawn into strings."""

import io
import math

import pytest
from rich.console import Console

from rlpipe.observe.console import LiveView, PlainView, console_view, sparkline
from rlpipe.observe.metrics import label
from rlpipe.observe.progress import Progress, duration, evaluation_line


def event(kind, time=0.0, stage="grpo", **fields):
    return {"kind": kind, "time": time, "stage": stage, "step": None} | fields


def phase(name, seconds, step, parent=None, says=None):
    return event("phase", phase=name, says=says or name, seconds=seconds, step=step, parent=parent)


def a_run():
    """Two of four steps: 10 s each, of which 4 s generate, 5 s train, 1 s publish with a nested verify."""
    yield event("run_started", task="rl", steps=4)
    yield event("phase_started", phase="start", says="starting 2 vLLM engines", parent=None)
    yield phase("start", 12.0, None, says="starting 2 vLLM engines")
    yield event("evaluation", step=0, metrics={"reward": 0.5, "failures": 0.0, "accuracy": 0.53}, samples=[])
    for step in (1, 2):
        yield phase("generate", 4.0, step)
        yield phase("train", 5.0, step)
        yield phase("verify", 0.5, step, parent="publish")
        yield phase("publish", 1.0, step)
        yield event("metrics", time=10.0 * step, step=step, metrics={"reward": step / 4, "reference_kl": 0.012})
    yield event("fault", step=2, message="engine 1 [died]", fatal=False)
    yield event("fault", message="told in full when the run has ended", fatal=True)
    yield event("run_finished", status="interrupted", seconds=65.0, message="Ctrl-C")


def drawn(view_class, events, terminal):
    screen = io.StringIO()
    view = view_class(Console(file=screen, force_terminal=terminal, width=110, color_system=None))
    for one in events:
        view(one)
    return view, screen.getvalue()


def test_without_a_terminal_every_fact_is_one_line():
    _, text = drawn(PlainView, a_run(), terminal=False)
    assert text.splitlines() == [
        "[grpo] starting 2 vLLM engines ...",
        "[grpo] starting 2 vLLM engines: 12.0 s",
        "[grpo] held-out, step 0: accuracy 53.0%  reward 0.500",
        "[grpo] step 1/4  reward 0.250  KL 0.012  (generate 40%, train 50%, publish 10%)",
        "[grpo] step 2/4  reward 0.500  KL 0.012  (generate 40%, train 50%, publish 10%)  20.0 s left",
        "[grpo] FAULT in step 2: engine 1 [died]",
        "[grpo] interrupted after 1:05: Ctrl-C",
    ]


def test_on_a_terminal_the_live_view_shows_progress_curve_and_time():
    events = list(a_run())
    view, _ = drawn(LiveView, events[:-1], terminal=True)
    text = shown(view, width=110)
    view.close()
    assert "2/4  10.00 s/step  20.0 s left" in text
    assert "reward 0.500  KL 0.012" in text
    assert "▁█  0.250 to 0.500" in text
    assert "step 0: accuracy 53.0%  reward 0.500" in text
    assert "█" * 30 + "  generate 40%  train 50%  publish 10%" in text


def shown(view, width):
    """The live lines, as a terminal of that width has them."""
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(view)
    return screen.getvalue()


def test_nothing_is_cut_off_in_a_terminal_of_80_columns():
    events = list(a_run())[:-1]
    metrics = {"accuracy": 0.918, "pass@1": 0.821, "pass@4": 0.963, "reward": 0.918, "length": 3.6}
    events.append(event("evaluation", step=60, metrics=metrics))
    view, _ = drawn(LiveView, events, terminal=True)
    lines = [line.rstrip() for line in shown(view, width=80).splitlines()]
    view.close()
    assert not any("…" in line for line in lines)
    assert lines[0].endswith("  2/4  10.00 s/step  20.0 s left")
    assert "held-out  step 60: accuracy 91.8%  pass@1 82.1%  pass@4 96.3%  reward 0.918" in lines[3]
    assert lines[4] == "step      " + "█" * 10 + "  generate 40%  train 50%  publish 10%"


def test_on_a_terminal_what_should_stay_is_printed_and_the_rest_leaves():
    view, text = drawn(LiveView, a_run(), terminal=True)
    assert "grpo  starting 2 vLLM engines: 12.0 s\n" in text
    assert "grpo  FAULT in step 2: engine 1 [died]\n" in text
    assert "grpo  interrupted after 1:05: Ctrl-C\n" in text
    assert view._live is None


def test_what_a_silent_phase_does_is_said_while_it_lasts():
    progress = Progress()
    progress.update(event("phase_started", phase="start", says="starting", time=5.0))
    progress.update(event("phase_started", phase="compile", says="compiling (about 50 s, once)", time=7.0))
    assert progress.doing == [("starting", 5.0), ("compiling (about 50 s, once)", 7.0)]
    progress.update(phase("compile", 1.0, None, parent="start", says="compiling (about 50 s, once)"))
    assert progress.doing == [("starting", 5.0)]


@pytest.mark.parametrize(
    ("terminal", "debug", "view"), [(True, False, LiveView), (True, True, PlainView), (False, False, PlainView)]
)
def test_a_debugger_gets_the_terminal_for_itself(terminal, debug, view, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert type(console_view(debug, Console(file=io.StringIO(), force_terminal=terminal))) is view


def test_sft_steps_show_what_sft_has():
    progress = Progress()
    progress.update(event("run_started", task="sft", steps=100))
    progress.update(
        event("metrics", step=10, metrics={"loss": 0.53211, "learning_rate": 1e-3, "tokens_per_second": 12345.6})
    )
    assert progress.line() == "loss 0.5321  lr 1.00e-03  tokens/s 12,346"
    assert progress.curve == [0.53211]


def test_failed_rewards_of_an_evaluation_are_shown_when_there_are_some():
    assert evaluation_line({"metrics": {"failures": 3.0, "pass@4": 0.82}}) == "pass@4 82.0%  failed rewards 3"


def test_sparkline_averages_down_to_its_width():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert sparkline([3.0], 8) == "▁"


@pytest.mark.parametrize(("seconds", "text"), [(8.24, "8.2 s"), (65, "1:05"), (7384, "2:03:04"), (59.96, "60.0 s")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_neither_the_held_out_loss_of_sft_nor_the_size_of_the_model_is_a_step():
    events = [
        event("run_started", stage="sft", task="sft", steps=4),
        event("metrics", stage="sft", step=0, metrics={"trainable_parameters": 8.0, "parameters": 16.0}),
        event("metrics", stage="sft", step=0, metrics={"heldout_loss": 4.125, "heldout_token_accuracy": 0.03}),
        event("metrics", stage="sft", step=4, metrics={"loss": 0.5}),
        event("metrics", stage="sft", step=4, metrics={"heldout_loss": 0.625, "heldout_token_accuracy": 0.8}),
    ]
    assert drawn(PlainView, events, terminal=False)[1].splitlines() == [
        "[sft] held-out, step 0: loss 4.125  token accuracy 3.0%",
        "[sft] step 4/4  loss 0.5",
        "[sft] held-out, step 4: loss 0.625  token accuracy 80.0%",
    ]
    view, text = drawn(LiveView, events, terminal=True)
    view.close()
    assert "sft  held-out, step 4: loss 0.625  token accuracy 80.0%\n" in text
    assert view._progress.line() == "loss 0.5"


NOTHING_SCORED = {"accuracy": math.nan, "pass@1": math.nan, "reward": math.nan, "failures": 512.0, "length": 8.0}


def test_where_every_reward_failed_there_is_no_number_but_their_count():
    assert evaluation_line({"metrics": NOTHING_SCORED}) == (
        "accuracy –  pass@1 –  reward –  failed rewards 512  length 8.0"
    )
    progress = Progress()
    progress.update(event("run_started", task="rl", steps=2))
    progress.update(event("metrics", step=1, metrics={"reward": math.nan, "reward_failures": 256.0, "entropy": 0.5}))
    assert progress.line() == "reward –  entropy 0.5  failed rewards 256"
    assert progress.curve == []
    assert label("loss").text(math.nan) == "nan", "a diverged loss is not hidden"


def test_how_far_a_long_phase_is_stands_beside_it_and_nowhere_else():
    events = [
        event("phase_started", phase="evaluate", says="answering held-out prompts", parent=None, step=3),
        event("progress", says="120/512, greedy"),
        event("progress", says="130/512, greedy"),
    ]
    view, _ = drawn(LiveView, events, terminal=True)
    view.close()
    assert view._doing().plain.startswith("answering held-out prompts 130/512, greedy · ")
    assert drawn(PlainView, events, terminal=False)[1] == ""
    view(phase("evaluate", 2.0, 3, says="answering held-out prompts"))
    assert view._progress.done == ""


def test_without_a_terminal_a_long_phase_says_now_and_then_how_far_it_is():
    def progress(time, says):
        return {"kind": "progress", "time": time, "says": says}

    begun = {"kind": "phase_started", "phase": "judge", "says": "judging", "step": None, "parent": None, "time": 100.0}
    events = [begun, *(progress(100.0 + 10 * i, f"{i}/9 prompts") for i in range(1, 9))]
    assert drawn(PlainView, events, terminal=False)[1].splitlines() == ["judging ...", "3/9 prompts", "6/9 prompts"]
