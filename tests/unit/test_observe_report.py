"""The report and the closing table of a run made by hand, whose every number is known."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console
from sample_groups import make_group
from tokenizers import Tokenizer, models

from rlpipe.data.flow import Failure, Score
from rlpipe.data.storage import Storage
from rlpipe.observe import report, rollouts, summary
from rlpipe.observe.events import EventLog
from rlpipe.observe.report import charts
from rlpipe.observe.report.collect import milestones, stages
from rlpipe.observe.rollouts import Record

EVIL = "</pre><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"
INFO = {
    "recipe": {"name": EVIL, "seed": 7},
    "versions": {"torch": "2.13.0"},
    "host": {"name": "box", "cores": 2, "memory_gib": 23, "system": "Linux"},
    "command": ["rlpipe", "run", "my recipe.yaml"],
}


def sample(prompt, completion, answer, **outcome):
    return {"prompt": prompt, "completion": completion, "columns": {"answer": answer}, **outcome}


def phase(log, name, step, seconds, says=None, parent=None):
    log.emit("phase", phase=name, says=says or name, seconds=seconds, step=step, parent=parent)


def write_sft(storage):
    log = EventLog(storage, stage="sft")
    log.run_started("sft", 20, INFO)
    phase(log, "start", None, 12.5, says="starting SFT")
    log.metrics(10, {"loss": 2.5})
    log.metrics(20, {"loss": 0.75})
    log.evaluation(0, {"accuracy": 0.0}, [sample("2+2=", EVIL, "4", reward=0.0)])
    log.evaluation(20, {"accuracy": 0.5}, [sample("2+2=", "5", "4", reward=0.0)])
    log.run_finished("completed")
    log.close()


def write_rl(storage):
    """Two steps: 4 s generate, 1 s train; an evaluation after each; the reward of one response failed."""
    log = EventLog(storage, stage="grpo")
    log.run_started("rl", 2, INFO)
    log.evaluation(0, {"accuracy": 0.5}, [sample("2+2=", "5", "4", reward=0.0)])
    for step in (1, 2):
        phase(log, "generate", step, 4.0)
        phase(log, "verify", step, 0.5, parent="train")
        phase(log, "train", step, 1.0)
        log.metrics(step, {"reward": 0.25 * step, "step_seconds": 5.5, "mismatch/abs": 2e-7, "reward/right": 0.1})
        log.emit("engines", step=step, engines=[engine("engine[0]", 500, 1.0), engine("engine[1]", 700, 4.0)])
        phase(log, "evaluate", step, 3.0, says="answering held-out prompts")
    log.evaluation(2, {"accuracy": 0.875}, [sample("2+2=", "4", "4", reward=1.0)])
    log.fault("engine 1 died <b>hard</b>", step=2)
    log.warning("3 prompts are left out")
    group = replace(
        make_group(["ab", EVIL], {"answer": "4"}),
        outcomes=(Score(1.0, {"right": 1.0}), Failure("deadline", "right: " + EVIL)),
    )
    rollouts.write(storage, 1, [Record(group, 0, [None, None])], ["right"])
    rollouts.write(storage, 2, [Record(group, 0, [0.5, 0.0])], ["right"])
    log.close()


def engine(name, tokens, seconds):
    speeds = {"tokens_per_second": tokens / seconds, "seconds_per_step": seconds / 50, "most_outstanding_tokens": 1234}
    return {"name": name, "node": "10.0.0.7 (ab12)", "tokens": tokens, "seconds": seconds, **speeds}


@pytest.fixture
def run_dir(tmp_path):
    root = Storage(tmp_path / "my run")
    write_sft(root.folder("stages/sft"))
    write_rl(root.folder("stages/grpo"))
    return tmp_path / "my run"


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(run_dir):
    path = report.write(run_dir)
    assert path == run_dir / "report.html"
    return Page(path.read_text())


def test_the_page_says_what_ran_and_how_it_ended(page):
    assert "my run" in page.text
    assert "torch 2.13.0" in page.text
    assert "rlpipe run 'my recipe.yaml'" in page.text
    assert "sft completed" in page.text
    assert "grpo unfinished" in page.text
    assert "step 2: engine 1 died <b>hard</b>" in page.text
    assert "3 prompts are left out" in page.text


def test_the_numbers_are_the_runs(page):
    assert "base 0.0% after sft 50.0% after grpo 87.5%" in page.text
    assert "held-out accuracy 87.5% from 50.0%" in page.text
    assert "reward 0.500 from 0.250" in page.text
    assert "loss 0.75 from 2.5" in page.text
    assert "generate 4 s 73% train 1 s 18% outside phases 0.5 s 9%" in page.text
    assert "starting SFT 12.5 s" in page.text
    assert "answering held-out prompts × 2 6.0 s" in page.text


def tips(page):
    return [tip for _, attrs in page.tags if "data-tips" in attrs for tip in json.loads(attrs["data-tips"])]


def test_engines_stand_beside_each_other(page):
    assert "engine node tokens/s decode step most tokens waiting time it worked" in page.text
    assert "engine[0] 10.0.0.7 (ab12) 500 20 ms 1,234" in page.text
    assert "engine[1] 10.0.0.7 (ab12) 175 80 ms 1,234" in page.text
    bars = [a["style"] for tag, a in page.tags if tag == "i" and a.get("style") == "width: 25.0%"]
    assert len(bars) == 1, "engine[0] worked a quarter of the time of engine[1]"


def test_hovering_a_curve_gives_its_values(page):
    assert "step 1\nreward: 0.250" in tips(page)
    assert "step 20\nloss: 0.75" in tips(page)
    assert "step 2\naccuracy: 87.5%" in tips(page)
    assert "step 2\nmismatch: 2.0e-07 nats/token" in tips(page)
    assert "step 1\ngenerate: 4 s\ntrain: 1 s\noutside phases: 0.5 s" in tips(page)


def test_hovering_a_token_gives_its_probability_and_version(page):
    shown = [attrs["data-tip"] for _, attrs in page.tags if attrs.get("class", "").startswith("token")]
    assert shown[0] == "token 7\nlog-probability -0.500 (p = 0.607)\nweights version 0"
    assert "⟨7⟩" in page.text


def test_tokens_read_as_text_where_the_run_has_a_tokenizer(run_dir):
    tokenizer = Tokenizer(models.BPE({"<": 7, "b>": 8, "c": 9}, []))
    Storage(run_dir / "stages/grpo").write("model/tokenizer.json", tokenizer.to_str().encode())
    page = Page(report.write(run_dir).read_text())
    assert "< b>" in page.text
    assert "⟨7⟩" not in page.text


def test_nothing_a_model_or_a_recipe_says_becomes_html(page):
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert "b" not in {tag for tag, attrs in page.tags if "hard" in str(attrs)}
    assert EVIL in " ".join(page.words)


def test_nothing_is_loaded_from_anywhere(run_dir):
    text = report.write(run_dir).read_text()
    page = Page(text)
    assert not [attrs for _, attrs in page.tags if attrs.keys() & {"src", "srcset", "action"}]
    assert {attrs["href"] for _, attrs in page.tags if "href" in attrs} == {"#sft", "#grpo"}
    assert "@import" not in text
    assert "url(" not in text
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")


def test_a_run_without_stages_or_anything_to_show_still_has_a_report(tmp_path):
    log = EventLog(Storage(tmp_path))
    log.run_started("rl", 5, INFO)
    log._file.write(b'{"kind": "met')
    page = Page(report.write(tmp_path).read_text())
    assert "rl unfinished" in page.text
    assert "events.jsonl line 2 is torn (13 bytes)" in page.text


def test_a_run_that_wrote_nothing_has_a_report_that_says_so(tmp_path):
    page = Page(report.write(tmp_path).read_text())
    assert "There is no events.jsonl: the run ended before it wrote anything." in page.text


def test_a_metric_that_is_never_finite_says_so(tmp_path):
    EventLog(Storage(tmp_path)).metrics(1, {"loss": np.nan})
    assert "no finite values" in Page(report.write(tmp_path).read_text()).text


def test_a_step_done_again_after_a_resume_counts_once(tmp_path):
    log = EventLog(Storage(tmp_path))
    log.run_started("rl", 2, INFO)
    phase(log, "train", 1, 2.0)
    log.metrics(1, {"reward": 0.1})
    phase(log, "train", 2, 9.0)
    log.run_started("rl", 2, INFO)
    phase(log, "train", 1, 3.0)
    log.metrics(1, {"reward": 0.2})
    (stage,) = stages(Storage(tmp_path))
    assert stage.step_phases == {1: {"train": 3.0}}
    assert stage.metrics["reward"] == {1: 0.2}
    assert dict(stage.other_phases) == {"train": [9.0]}


# Charts


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.13, 0.97, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 37.0, [0, 10, 20, 30, 40]),
    ],
)
def test_axes_end_on_round_numbers(low, high, ticks):
    assert charts.Axis(low, high, 0.0, 100.0).ticks == ticks


def test_an_axis_of_one_value_has_room_on_both_sides():
    axis = charts.Axis(3.0, 3.0, 0.0, 100.0)
    assert axis.low < 3.0 < axis.high
    assert charts.Axis(0.0, 0.0, 0.0, 100.0)(0.0) == 50.0


def test_points_are_drawn_where_their_values_are():
    svg = str(charts.line_chart({"a": {0: 0.0, 10: 1.0}}, str, None, None))
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    assert f'points="{charts.LEFT}.0,{bottom}.0 {charts.WIDTH - charts.RIGHT}.0,{top}.0"' in svg


def test_bars_stack_and_many_steps_are_averaged():
    svg = charts.stacked_bars({"a": {1: 1.0}, "b": {1: 3.0}}, "{:g} s".format)
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.2)
    many = charts.stacked_bars({"a": {step: float(step) for step in range(1, 241)}}, "{:g} s".format)
    assert len(re.findall("<rect", many)) == 120
    assert "steps 1 to 2, mean\\na: 1.5 s" in many.replace("&#34;", '"')


def test_the_running_mean_is_not_shifted():
    assert charts.running_mean([1.0, 2.0, 3.0, 4.0, 5.0], 3) == [1.5, 2.0, 3.0, 4.0, 4.5]
    assert (charts.window(39), charts.window(40), charts.window(100)) == (1, 5, 11)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.25, "0.25"), (12000, "12k"), (3e-7, "3e-07"), (-40, "-40")])
def test_ticks_are_short(value, text):
    assert charts.number(value) == text


# The closing table


def test_milestones_are_the_base_and_the_end_of_each_stage(run_dir):
    found = milestones(stages(Storage(run_dir)))
    assert [(name, event["metrics"]["accuracy"]) for name, event in found] == [
        ("base", 0.0),
        ("after sft", 0.5),
        ("after grpo", 0.875),
    ]


def rows_of(screen, bar):
    """What the cells of every table row say; the bars of headings are thicker."""
    return [[cell.strip() for cell in line.split(bar)[1:-1]] for line in screen.getvalue().splitlines() if bar in line]


def test_the_closing_table(run_dir):
    screen = io.StringIO()
    summary.show(Console(file=screen, width=100, color_system=None), run_dir)
    assert rows_of(screen, "┃") == [
        ["", "base", "after sft", "after grpo"],
        ["prompt", "reference", "base", "after sft", "after grpo"],
    ]
    figures, answers, *_ = rows_of(screen, "│")
    assert figures == ["accuracy", "0.0%", "50.0%", "87.5%"]
    assert answers[:2] == ["2+2=", "4"]
    assert answers[3:] == ["5", "4"]


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        (["<|user|>84+96<|end|><|bot|>", "<|user|>84+13<|end|><|bot|>"], ["84+96", "84+13"]),
        (["<s>user\nHow so?</s>", "<s>user\nHow now?</s>"], ["so?", "now?"]),
        (["2+2=", "2+21="], ["2+2=", "2+21="]),
        (["the same", "the same"], ["the same", "the same"]),
        (["ab", "ab cd"], ["ab", "ab cd"]),
        (["alone"], ["alone"]),
    ],
)
def test_what_all_prompts_have_around_them_is_left_out(prompts, shown):
    assert summary.unframed(prompts) == shown


def test_a_run_that_evaluated_nothing_prints_nothing(tmp_path):
    EventLog(Storage(tmp_path)).metrics(1, {"loss": 1.0})
    screen = io.StringIO()
    summary.show(Console(file=screen), tmp_path)
    assert screen.getvalue() == ""


def test_a_terminal_is_not_steered_by_what_a_model_wrote():
    assert summary._short("\x1b[2J4\x07\n 2") == "·[2J4· 2"
    assert summary._short("a" * 50 + "b" * 50) == "a" * 30 + " … " + "b" * 30


def test_a_stage_whose_rewards_all_failed_is_shown_with_their_count(tmp_path):
    for name, accuracy, failures in (("sft", 0.5, 0.0), ("grpo", math.nan, 512.0)):
        log = EventLog(Storage(tmp_path).folder(f"stages/{name}"), stage=name)
        log.run_started("rl", 1, INFO)
        log.evaluation(1, {"accuracy": accuracy, "failures": failures}, [])
        log.close()
    page = Page(report.write(tmp_path).read_text())
    assert "nan" not in page.text
    assert "after sft 50.0%" in page.text and "after grpo –" in page.text
    assert "failed held-out rewards 512" in page.text


def test_two_evaluations_of_one_step_are_one_milestone(tmp_path):
    """What a trainer says of held-out pairs, and what the model answers, in either order."""
    log = EventLog(Storage(tmp_path))
    log.run_started("dpo", 9, INFO)
    answers, ranked = [sample("2+2=", "4", "4", reward=1.0)], {"pair_accuracy": 0.5, "margin": 0.0}
    for step, pairs_first in ((0, False), (9, True)):
        for pairs in (pairs_first, not pairs_first):
            log.evaluation(step, ranked if pairs else {"accuracy": 0.25}, [] if pairs else answers)
    log.close()
    found = milestones(stages(Storage(tmp_path)))
    assert [(name, event["step"]) for name, event in found] == [("base", 0), ("trained", 9)]
    for _, event in found:
        assert event["metrics"] == ranked | {"accuracy": 0.25}
        assert event["samples"] == answers


def test_a_reward_model_shows_pairs_beside_what_length_alone_gives(tmp_path):
    """Between stages that answer prompts: its own columns, no answers, and no part in the accuracy of the others."""
    for name, step, metrics, samples in (
        ("sft", 9, {"accuracy": 0.5, "failures": 0.0}, [sample("2+2=", "4", "4", reward=1.0)]),
        ("rm", 20, {"pair_accuracy": 0.9, "length_baseline": 0.55, "margin": 1.5}, []),
    ):
        log = EventLog(Storage(tmp_path / "stages" / name), name)
        log.run_started({"rm": "reward_model"}.get(name, name), step, INFO)
        log.evaluation(0, dict.fromkeys(metrics, 0.0), samples)
        log.metrics(step, {"loss": 0.25, "margin": 1.25})
        log.evaluation(step, metrics, samples)
        log.close()
    screen = io.StringIO()
    summary.show(Console(file=screen, width=140), tmp_path)
    assert rows_of(screen, "┃")[0] == ["", "base", "after sft", "after rm"]
    assert rows_of(screen, "│") == [
        ["accuracy", "0.0%", "50.0%", ""],
        ["pair accuracy", "", "", "90.0%"],
        ["by length alone", "", "", "55.0%"],
        ["margin", "", "", "1.500"],
        ["2+2=", "4", "4", "4"],
    ]
    page = report.write(tmp_path).read_text()
    assert "Held-out pairs ranked right" in page and "90.0%" in page and "by length alone" in page
