"""The embedded task: right sums, nothing held out is trained on, the same for everyone."""

import pytest

from rlpipe.data.arithmetic import problems
from rlpipe.data.records import DataError
from rlpipe.recipe.data import ArithmeticData


def data(**changes):
    return ArithmeticData(kind="arithmetic", **changes)


def test_first_problems_of_the_default_are_these():
    train, heldout = problems(data())
    assert [r.fields for r in train[:2]] == [
        {"prompt": "62+27", "completion": "89", "answer": "89"},
        {"prompt": "3+48", "completion": "51", "answer": "51"},
    ]
    assert heldout[0].fields == {"prompt": "67+46", "completion": "113", "answer": "113"}
    assert (len(train), len(heldout)) == (9012, 512)


@pytest.mark.parametrize("settings", [{}, {"operands": 3, "largest": 30}, {"operands": 4, "largest": 999}])
def test_sums_are_right_and_held_out_problems_never_trained_on_in_any_order(settings):
    train, heldout = problems(data(heldout=64, **settings))
    for record in (*train, *heldout):
        assert sum(map(int, record.fields["prompt"].split("+"))) == int(record.fields["completion"])
    unordered = {tuple(sorted(record.fields["prompt"].split("+"))) for record in heldout}
    assert not unordered & {tuple(sorted(record.fields["prompt"].split("+"))) for record in train}
    texts = [record.fields["prompt"] for record in (*train, *heldout)]
    assert len(set(texts)) == len(texts) <= 100_000


def test_another_seed_draws_another_order():
    assert problems(data(seed=1))[1][0] != problems(data())[1][0]


def test_too_few_problems_is_an_error_with_the_fix():
    with pytest.raises(DataError, match=r"2 operands from 0 to 3 make 16 problems.*Lower data.heldout or raise"):
        problems(data(largest=3, heldout=16))


def test_a_careless_teacher_forgets_every_carry_in_the_asked_share_of_demonstrations_and_nowhere_else():
    train, heldout = problems(data(smallest=10, forgotten_carries=0.7))
    by_prompt = {r.fields["prompt"]: r.fields for r in train}
    assert by_prompt["58+67"] == {"prompt": "58+67", "completion": "115", "answer": "125"}
    assert by_prompt["95+17"]["completion"] in ("102", "112")
    carrying = [r.fields for r in train if sum(int(n) % 10 for n in r.fields["prompt"].split("+")) > 9]
    wrong = [fields for fields in carrying if fields["completion"] != fields["answer"]]
    assert len(wrong) / len(carrying) == pytest.approx(0.7, abs=0.02)
    assert all(int(fields["answer"]) - int(fields["completion"]) == 10 for fields in wrong)
    assert sum(r.fields["completion"] != r.fields["answer"] for r in train) == len(wrong)
    assert all(r.fields["completion"] == r.fields["answer"] for r in heldout)


def test_operands_begin_at_the_smallest():
    train, heldout = problems(data(smallest=10, largest=12, heldout=2))
    prompts = {r.fields["prompt"] for r in (*train, *heldout)}
    assert prompts <= {f"{a}+{b}" for a in (10, 11, 12) for b in (10, 11, 12)}
    with pytest.raises(ValueError, match="smallest=5 is above largest=3"):
        data(smallest=5, largest=3)


def test_some_demonstrations_leave_the_sum_to_the_calculator():
    train, heldout = problems(data(calls=0.25))
    called = [r for r in train if isinstance(r.fields["completion"], list)]
    assert 0.22 < len(called) / len(train) < 0.28
    [first] = called[:1]
    assert first.fields["completion"] == [
        {"role": "assistant", "content": f"<calc>{first.fields['prompt']}</calc>"},
        {"role": "tool", "content": first.fields["answer"]},
        {"role": "assistant", "content": first.fields["answer"]},
    ]
    assert all(isinstance(r.fields["completion"], str) for r in heldout)
    assert [r.fields["prompt"] for r in train] == [r.fields["prompt"] for r in problems(data())[0]]
