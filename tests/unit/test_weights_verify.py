"""Every way in which a publish can fail is named, and none that did not is."""

import numpy as np
import pytest

from rlpipe.weights.probes import choose_probes
from rlpipe.weights.verify import Verifier, WeightSyncError, compare, tolerance_for

BEFORE = [np.array([-1.0, -2.0]), np.array([-0.5])]
AFTER = [np.array([-1.1, -2.0]), np.array([-0.6])]


def test_compare_measures_in_nats_over_all_tokens():
    found = compare(BEFORE, AFTER, tolerance=0.05)
    assert found.mean_difference == pytest.approx(0.2 / 3)
    assert found.largest_difference == pytest.approx(0.1)
    assert (found.tokens, found.passed) == (3, False)
    assert compare(BEFORE, AFTER, tolerance=0.1).passed


def test_compare_refuses_answers_to_other_probes():
    with pytest.raises(ValueError, match="the trainer answered 3 tokens, the engine 2"):
        compare(BEFORE, BEFORE[:1], tolerance=0.1)


def test_a_publish_that_arrived_passes():
    verifier = Verifier(tolerance=1e-3)
    for version, answers in enumerate((BEFORE, AFTER, AFTER)):
        noisy = [a + 1e-5 for a in answers]
        assert verifier.check("rollout[0]", version, f"d{version}", f"d{version}", answers, noisy).passed


def test_other_bytes_are_an_error():
    with pytest.raises(
        WeightSyncError, match=r"rollout\[1\], weight version 4: received bytes with digest b, .* sent a"
    ):
        Verifier(tolerance=1e-3).check("rollout[1]", 4, "a", "b", BEFORE, BEFORE)


@pytest.mark.parametrize("answers", [AFTER, [np.array([np.nan, -2.0]), np.array([-0.5])]], ids=["other", "nan"])
def test_other_answers_are_an_error_although_the_bytes_arrived(answers):
    with pytest.raises(WeightSyncError, match=r"version 4: on 3 probe tokens .*tolerance is 0\.001\. .* wrong policy"):
        Verifier(tolerance=1e-3).check("rollout[0]", 4, "a", "a", BEFORE, answers)


def test_a_stale_engine_is_an_error_below_the_tolerance():
    verifier = Verifier(tolerance=0.2)
    verifier.check("rollout[0]", 1, "a", "a", BEFORE, BEFORE)
    with pytest.raises(WeightSyncError, match=r"weight version 2: .* exactly those of the version before"):
        verifier.check("rollout[0]", 2, "b", "b", AFTER, BEFORE)


def test_each_engine_is_compared_with_its_own_past():
    verifier = Verifier(tolerance=0.2)
    verifier.check("rollout[0]", 1, "a", "a", BEFORE, BEFORE)
    verifier.check("rollout[1]", 2, "b", "b", AFTER, BEFORE)


def test_publishing_the_same_weights_again_is_fine():
    verifier = Verifier(tolerance=0.2)
    for version in (1, 2):
        verifier.check("rollout[0]", version, "a", "a", BEFORE, BEFORE)


def test_a_step_too_small_to_show_anywhere_is_fine():
    verifier = Verifier(tolerance=1e-3)
    verifier.check("rollout[0]", 1, "a", "a", BEFORE, BEFORE)
    verifier.check("rollout[0]", 2, "b", "b", [b + 1e-8 for b in BEFORE], BEFORE)


def test_tolerance_follows_the_dtype_unless_set():
    assert tolerance_for("auto", "float32") == 1e-3
    assert tolerance_for("auto", "bfloat16") == 0.05
    assert tolerance_for(0.3, "float32") == 0.3


def test_probes_are_prompts_and_sweeps_and_always_the_same():
    prompts = [np.arange(n, dtype=np.int32) for n in (1, 5, 100, 7, 8, 9)]
    probes = choose_probes(prompts, vocab_size=50, longest=41)
    assert [len(p) for p in probes] == [5, 32, 7, 8, 32, 32]
    assert all(p.dtype == np.int32 and p.max() < 50 for p in probes[-2:])
    assert set(np.concatenate(probes[-2:]).tolist()) == set(range(50))
    again = choose_probes(prompts, vocab_size=50, longest=41)
    assert all(np.array_equal(a, b) for a, b in zip(probes, again, strict=True))
