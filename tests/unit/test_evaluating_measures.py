"""Measures of answers, comparisons of models, and which of them share engines."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure, Score
from rlpipe.pipelines.evaluating.compare import against, not_compared, regressions, wins
from rlpipe.pipelines.evaluating.measures import (
    Measure,
    failure_measure,
    greedy_measures,
    kl_measures,
    left_out,
    mean_of,
    refusal_measure,
    sampled_measures,
)
from rlpipe.pipelines.evaluating.served import sittings
from rlpipe.recipe.evaluating import REFUSALS
from rlpipe.recipe.rollout import Evaluation

FAILED = Failure("error", "by design")


def group(*outcomes, said="4"):
    return replace(make_group([said] * len(outcomes)), outcomes=outcomes)


def scores(*values):
    return [group(FAILED if value is None else Score(value, {"exact": value})) for value in values]


def test_a_failure_is_in_no_mean():
    found = greedy_measures(scores(1.0, 0.0, None, 1.0), Evaluation())
    assert found["accuracy"].value == found["reward"].value == 2 / 3
    assert found["accuracy"].below_N.tolist() == [1, 1, 0, 1]
    assert found["length"].value == 2.0 and "turns" not in found


def test_pass_at_k_is_over_the_samples_that_have_a_score():
    groups = [group(Score(1.0, {}), Score(0.0, {}), FAILED), group(Score(1.0, {}), FAILED, FAILED)]
    found = sampled_measures(groups, Evaluation(pass_at=[1, 2], samples=3))
    assert found["pass@1"].value == (1 / 2 + 1) / 2
    assert found["pass@2"].value == 1.0, "of the second prompt one sample is left, which says nothing of two"
    assert sampled_measures(groups, Evaluation(correct_at=None)) == {}


def test_shares_have_wilsons_interval_and_means_a_resampled_one():
    assert mean_of([1, 0, 1, 1]).interval(0) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    low, high = mean_of([0.2, 0.4, 0.9]).interval(0)
    assert 0.2 <= low < 0.5 < high <= 0.9


def test_kl_and_perplexity_by_hand():
    own = [[np.array([-1.0, -1.0])], [np.array([-2.0])]]
    reference = [[np.array([-1.5, -2.0])], [np.array([-2.5])]]
    found = kl_measures(own, reference)
    assert found["reference_kl"].value == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert found["perplexity"].value == pytest.approx(math.exp((1.5 + 2.0 + 2.5) / 3))


def test_kl_is_over_the_tokens_that_both_have():
    """As where the reference has the shorter context, and says nothing of the end of the first answer."""
    own = [[np.array([-1.0, -1.0, -9.0]), np.array([-1.0])], [np.array([-2.0])]]
    reference = [[np.array([-1.5, -2.0]), np.array([])], [np.array([-2.5])]]
    found = kl_measures(own, reference)
    assert found["reference_kl"].value == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert found["perplexity"].value == pytest.approx(math.exp((1.5 + 2.0 + 2.5) / 3))
    assert left_out(own, reference) == 2 and left_out(reference, reference) == 0
    assert kl_measures(reference, own)["reference_kl"].value == -found["reference_kl"].value


@pytest.mark.parametrize(
    ("said", "refused"),
    [("I’m sorry, but no.", 1), ("As an AI, I like sums.", 1), ("I can not do that", 1), ("Sorry was the horse.", 0)],
)
def test_the_default_patterns_of_refusals(said, refused):
    assert refusal_measure([group(Score(1.0, {}), said=said)], REFUSALS).value == refused


def test_wins_count_ties_half_and_failures_not_at_all():
    ours, theirs = scores(1.0, 0.0, 0.5, None, 1.0), scores(0.0, 1.0, 0.5, 1.0, None)
    found = wins(ours, theirs, None)
    assert found.above_N.tolist() == [1.0, 0.0, 0.5, 0.0, 0.0] and found.below_N.tolist() == [1, 1, 1, 0, 0]
    assert wins(ours, theirs, "exact").value == 0.5


def test_models_are_compared_on_prompts_that_both_have():
    ours, base = mean_of([1, 1, 1, 1, 1, 1, 0, None]), mean_of([0, 0, 0, 0, 0, 0, 0, 1])
    found = against("accuracy", ours, base, seed=0)
    assert found.difference == pytest.approx(6 / 7) and found.prompts == 7
    assert found.p == 2 / 64 and found.p_worse == 1.0 and found.test == "McNemar, exact"
    assert found.low < found.difference <= found.high
    nothing = against("reward", mean_of([None]), mean_of([1.0]), seed=0)
    assert math.isnan(nothing.difference) and nothing.p == 1.0


def test_scores_are_compared_by_sign_flips_and_perplexity_the_other_way_round():
    ours, base = mean_of([0.1, 0.2, 0.3, 0.35]), mean_of([0.2, 0.5, 0.9, 0.85])
    assert against("reward", ours, base, 0).p_worse == 1 / 16
    ours, base = (Measure(np.array(above), np.full(4, 2.0), True) for above in ([4.0] * 4, [2.0, 2.1, 2.2, 2.3]))
    found = against("perplexity", ours, base, 0)
    assert found.p_worse == 1 / 16 and found.difference > 0


def test_the_test_of_a_mean_over_tokens_is_of_that_mean():
    """One long answer decides the mean, and many short ones do not."""
    tokens, base = np.array([1000.0, 1, 1, 1, 1, 1, 1, 1]), Measure(np.zeros(8), np.array([1000.0, *[1] * 7]))
    ours = Measure(np.array([-400.0, *[0.3] * 7]), tokens)
    assert ours.parts_N.sum() == pytest.approx(ours.value) and ours.parts_N[0] == -400 / 1007
    found = against("reference_kl", ours, base, 0)
    assert found.difference < 0 and found.p > 0.5, "of seven in eight prompts it is higher, by nothing that counts"
    shorter = Measure(base.above_N + 2.0 * tokens[::-1], tokens[::-1])
    same = Measure(2.0 * tokens, tokens)
    assert against("reference_kl", shorter, same, 0).p == 1.0, "both have 2 per token, wherever the tokens are"
    assert mean_of([0.5, 1.0]).parts_N.tolist() == [0.25, 0.5]


def test_a_regression_is_more_than_tolerated_by_more_than_chance():
    base = mean_of([1] * 40)

    def lost(count, tolerated):
        return {"accuracy": against("accuracy", mean_of([0] * count + [1] * (40 - count)), base, 0, (), tolerated)}

    better = {"accuracy": against("accuracy", base, mean_of([0] * 10 + [1] * 30), 0, (), 0.02)}
    compared = {"sure": lost(10, 0.02), "chance": lost(3, 0.02), "better": better}
    [found] = regressions(compared, {"accuracy": 0.02}, 0.05)
    assert (found.model, found.loss) == ("sure", 0.25) and found.p == pytest.approx(2.0**-10, abs=1e-3)
    assert "sure is worse than the baseline in accuracy: by 0.25, where 0.02 is tolerated" in found.told
    for count, most in ((10, 0.25), (10, 0.2), (3, 0.0)):
        assert regressions({"a": lost(count, most)}, {"accuracy": most}, 0.05) == [], "worse, but by chance"
    assert regressions({"a": lost(6, 0.0)}, {"accuracy": 0.0}, 0.05)[0].p == 2.0**-6, "McNemar's"
    refusals = {"more": {"refusals": against("refusals", mean_of([1] * 10), mean_of([0] * 10), 0)}}
    assert regressions(refusals, {"refusals": 0.1}, 0.05)[0].loss == 1.0
    fewer = {"fewer": {"refusals": against("refusals", mean_of([0] * 10), mean_of([1] * 10), 0)}}
    assert regressions(fewer, {"refusals": 0.1}, 0.05) == []


def test_of_many_regressions_one_is_not_found_by_chance():
    one = {"m": against("m", mean_of([0] * 6 + [1] * 4), mean_of([1] * 10), 0)}
    assert one["m"].p_worse == 1 / 64
    assert [each.model for each in regressions({"a": one}, {"m": 0.0}, 0.05)] == ["a"]
    none = {"m": against("m", mean_of([1] * 10), mean_of([1] * 10), 0)}
    many = {"a": one, "b": none, "c": none, "d": none}
    assert regressions(many, {"m": 0.0}, 0.05) == [], "1/64 is no surprise among four: 0.05 / 4 is smaller"
    surer = {"m": against("m", mean_of([0] * 10), mean_of([1] * 10), 0)}
    assert len(regressions({"a": one, "b": surer, "c": surer, "d": surer}, {"m": 0.0}, 0.05)) == 4


def test_tolerance_moves_the_test_of_a_perplexity_and_of_a_win_rate():
    base = Measure(np.array([2.0, 2.1, 2.2, 2.3] * 5), np.full(20, 2.0), True)
    ours = Measure(base.above_N + 0.4 + np.tile([-0.01, 0.01], 10), np.full(20, 2.0), True)
    loss = ours.value - base.value
    assert against("perplexity", ours, base, 0, tolerated=0.9 * loss).p_worse < 0.001
    assert 0.4 < against("perplexity", ours, base, 0, tolerated=loss).p_worse < 0.8
    wins_N = mean_of([0.0] * 8 + [1.0] * 2)
    found = against("win_rate", wins_N, None, 0, tolerated=0.3)
    assert found.p_worse > 0.5 > 0.06 > against("win_rate", wins_N, None, 0).p_worse
    assert found.test == "sign test" and against("win_rate", mean_of([0.3, 0.9]), None, 0).test == "sign flips"


def test_what_cannot_be_compared_does_not_pass():
    nothing = against("reward", mean_of([None, 1]), mean_of([1, None]), 0)
    endless = Measure(np.array([-np.inf, 1.0]), np.ones(2))
    unbounded = against("reference_kl", endless, mean_of([0.0, 0.0]), 0)
    assert math.isnan(unbounded.p) and math.isnan(unbounded.p_worse)
    compared = {"a": {"reward": nothing, "reference_kl": unbounded}}
    tolerated = {"reward": 0.1, "reference_kl": 0.1, "gsm8k/acc": 0.1}
    assert regressions(compared, tolerated, 0.05) == []
    told = not_compared(compared, tolerated)
    assert [text.partition(":")[0] for text in told] == [f"regressions.{metric}" for metric in tolerated]
    assert "on 0 prompts both have one" in told[0] and "not question by question" in told[2]
    assert not_compared({"a": {"reward": against("reward", mean_of([1]), mean_of([1]), 0)}}, {"reward": 0.1}) == []


def test_failed_rewards_are_a_metric_of_their_own():
    ours, base = failure_measure(scores(*[None] * 8, 1.0)), failure_measure(scores(*[1.0] * 9))
    assert (ours.value, base.value) == (8 / 9, 0.0)
    compared = {"a": {"failure_rate": against("failure_rate", ours, base, 0)}}
    assert regressions(compared, {"failure_rate": 0.1}, 0.05)[0].loss == 8 / 9


def model(name, path="base", adapter=None, rank=None, template="plain", end=2):
    spec = SimpleNamespace(dtype="auto", revision=None)
    recipe = SimpleNamespace(model=spec)
    tokenizer = SimpleNamespace(chat_template=template, eos_token_id=end)
    return SimpleNamespace(
        name=name, model_path=path, adapter=adapter, lora_rank=rank, recipe=recipe, tokenizer=tokenizer
    )


def test_adapters_of_one_base_sit_together_and_the_reference_comes_last():
    found = sittings(
        [
            model("base"),
            model("other", "elsewhere"),
            model("small", adapter="a", rank=8),
            model("prefix", adapter="b"),
            model("wide", adapter="c", rank=32),
        ],
        "base",
    )
    assert [(sitting.names, sitting.lora_rank, sitting.beside) for sitting in found] == [
        ("other", None, None),
        ("prefix", None, "b"),
        ("small, wide, base", 32, None),
    ]
    assert [sitting.names for sitting in sittings([model("a", "a"), model("b", "b")], None)] == ["a", "b"]


def test_an_adapter_that_asks_or_ends_otherwise_has_engines_of_its_own():
    chats, ends = model("chats", adapter="a", rank=8, template="chat"), model("ends", adapter="b", rank=8, end=7)
    found = sittings([model("base"), chats, model("like", adapter="c", rank=8), ends], None)
    assert [sitting.names for sitting in found] == ["base, like", "chats", "ends"]
