"""Reward models as rewards: tokens as sampled or through text, batches that change nothing, failures by their kind."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sample_groups import make_group
from transformers import Qwen2ForSequenceClassification

from rlpipe.data.flow import Failure, FinishReason, Group, Prompt, Score, Trajectory, VersionSpan
from rlpipe.models.scratch import build_model, build_tokenizer
from rlpipe.pipelines import reward_models
from rlpipe.recipe.model import ScratchModel
from rlpipe.recipe.rewards import ModelReward, RewardMix
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards import replicas
from rlpipe.rewards.encoding import as_sampled, encoder
from rlpipe.rewards.model import Model, Scorer
from rlpipe.rewards.reward import Allowance, RewardUnusable
from rlpipe.rewards.stage import build
from rlpipe.runtime import backoff, revival
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, NotStarted, RoleDied, Silent
from rlpipe.runtime.local import LocalHandle
from rlpipe.runtime.roles import PlacementError
from rlpipe.training.distributed import Rank
from rlpipe.training.reward_model import RewardModel, RewardModelSpec

TINY = ScratchModel(scratch="qwen2", hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model with random weights, and its tokenizer."""
    path, tokenizer = tmp_path_factory.mktemp("rm"), build_tokenizer()
    config = build_model(TINY, 0, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id).config
    config.num_labels = 1
    torch.manual_seed(0)
    Qwen2ForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(6, 262, n).astype(np.int32) for n in (5, 40, 2, 17, 1, 33, 8)]


def spec(folder, **settings):
    return RewardModelSpec(str(folder), 0, "float32", **settings)


@pytest.mark.parametrize("budget", [1, 64, 16384])
def test_scores_depend_on_nothing_beside_the_sequence(folder, sequences, budget):
    together = RewardModel(spec(folder, tokens_per_batch=budget), Rank()).score(sequences)
    model = Qwen2ForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        alone = [model(torch.from_numpy(tokens[None].astype(np.int64))).logits.item() for tokens in sequences]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(np.round(alone, 3))) == len(alone), "they do differ"


def test_nothing_to_score(folder):
    assert RewardModel(spec(folder), Rank()).score([]).tolist() == []


# Tokens


def conversation(completions, finish=FinishReason.STOP, tokenizer=None):
    """A group as the sampler makes it, over `2+2` as a chat."""
    tokenizer = tokenizer or build_tokenizer()
    messages = [{"role": "user", "content": "2+2"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = Prompt("p", np.array(tokenizer(text)["input_ids"], np.int32), text, {}, messages)
    rows = [_trajectory(prompt, i, text, finish, tokenizer) for i, text in enumerate(completions)]
    return Group("g", prompt, tuple(rows), tuple(completions), ())


def _trajectory(prompt, index, text, finish, tokenizer):
    end = [tokenizer.eos_token_id] if finish is FinishReason.STOP else []
    tokens = np.array(tokenizer(text)["input_ids"] + end, np.int32)
    ones = np.ones(len(tokens), np.float32)
    return Trajectory("g", "p", index, prompt.tokens, tokens, ones, -ones, (VersionSpan(0, 0),), finish)


def other_tokenizer():
    """The same words under other numbers, and a template of its own."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["2+2"])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return tokenizer


def test_the_same_tokenizer_gets_the_sampled_tokens():
    encode, says = encoder("rm", build_tokenizer(), build_tokenizer(), chat=True)
    assert encode is as_sampled
    assert says == "reward `rm`: its tokens are the policy's, so it gets them as they were sampled."
    group = conversation(["4", "5!"])
    assert build_tokenizer().decode(encode(group)[1]) == "<|user|>2+2<|end|><|assistant|>5!<|end|>"


@pytest.mark.parametrize(("finish", "end"), [(FinishReason.STOP, "<|end|>"), (FinishReason.LENGTH, "")])
def test_another_tokenizer_gets_the_text_in_its_own_template(finish, end):
    own = other_tokenizer()
    encode, says = encoder("rm", build_tokenizer(), own, chat=True)
    assert says == "reward `rm`: its vocabulary is not the policy's, so responses go to it as text."
    ids = encode(conversation(["4", "5!"], finish))
    assert [own.decode(row) for row in ids] == [f"[user]2+2<|end|>\n[assistant]{text}{end}" for text in ("4", "5!")]
    assert own.convert_tokens_to_ids("2+2") in ids[0]


def test_another_template_alone_also_needs_conversion():
    own = build_tokenizer()
    own.chat_template = other_tokenizer().chat_template
    encode, says = encoder("rm", build_tokenizer(), own, chat=True)
    assert "its chat template is not the policy's" in says
    assert own.decode(encode(conversation(["4"]))[0]) == "[user]2+2<|end|>\n[assistant]4<|end|>"
    assert encoder("rm", build_tokenizer(), own, chat=False)[0] is as_sampled


def test_plain_text_is_converted_as_text():
    own = other_tokenizer()
    encode, _ = encoder("rm", build_tokenizer(), own, chat=False)
    assert own.decode(encode(make_group(["4"], text="2+2="))[0]) == "2+2=4<|end|>"


def test_a_conversation_needs_a_template():
    own = other_tokenizer()
    own.chat_template = None
    with pytest.raises(RewardUnusable, match=r"reward `rm`: .*no chat template.*Add a chat_template.jinja"):
        encoder("rm", build_tokenizer(), own, chat=True)


# The component


class Answering:
    """A handle that answers with `answer(sequences)` or raises it."""

    name = "reward/rm"

    def __init__(self, answer):
        self.answer, self.asked, self.pulses = answer, [], iter(lambda: None, "never")

    def pulse(self, within):
        beat = next(self.pulses)  # None: it lives
        if beat is not None:
            raise beat
        return SimpleNamespace(result=lambda: None)

    def call(self, within, method, sequences):
        assert method is RewardModel.score
        self.asked.append((within, sequences))
        return self

    def result(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(self.asked[-1][1])


def reward(answer, max_length=256, replicas=1, **settings):
    recipe = ModelReward(kind="model", name="rm", path="folder", **settings)
    handles = [Answering(answer) for _ in range(replicas)]
    return Model(recipe, Scorer([[handle] for handle in handles], as_sampled, max_length)), handles[0]


def test_groups_are_one_call_within_its_time():
    model, handle = reward(lambda sequences: [float(len(s)) for s in sequences])
    groups = [conversation(["4", "12"]), conversation(["345"]), conversation(["6", "7"])]
    assert model.score_all(groups, Allowance(7.0)) == [[8.0, 9.0], [10.0], [8.0, 8.0]]
    [(within, sequences)] = handle.asked
    assert (within.phase, within.seconds) == ("reward", 7.0)
    assert [len(tokens) for tokens in sequences] == [8, 9, 10, 8, 8]


@pytest.mark.parametrize(
    ("replicas", "budget", "waiting", "takes"),
    [(1, 16384, 7, 7), (2, 16384, 7, 4), (4, 16384, 1, 1), (1, 35, 7, 2), (1, 34, 7, 2), (1, 33, 7, 1), (1, 1, 7, 1)],
)
def test_a_call_takes_a_replicas_share_of_what_waits_within_its_tokens(replicas, budget, waiting, takes):
    model, _ = reward(None, replicas=replicas, tokens_per_batch=budget)
    assert model.takes([conversation(["4", "12"])] * waiting) == takes  # 17 tokens each


def test_what_is_too_long_is_a_failure_and_is_not_asked():
    model, handle = reward(lambda sequences: [1.0] * len(sequences), max_length=9)
    columns = model.score_all([conversation(["4", "1234"]), conversation(["12"])], Allowance(7.0))
    assert columns == [[1.0, Failure("too_long", "11 tokens; the reward model takes 9 at most")], [1.0]]
    assert [len(s) for _, sequences in handle.asked for s in sequences] == [8, 9]


def test_a_missed_deadline_is_a_failure_and_the_replica_is_asked_again():
    model, handle = reward(DeadlineExceeded("reward/rm did not finish RewardModel.score within 7 s.\nIt stands at: …"))
    for _ in range(2):
        columns = model.score_all([conversation(["4", "5"]), conversation(["6"])], Allowance(7.0))
        late = Failure("deadline", "reward/rm did not finish RewardModel.score within 7 s.")
        assert columns == [[late, late], [late]]
    assert len(handle.asked) == 2


def test_one_that_cannot_be_replaced_alone_and_gives_no_sign_of_life_is_dead():
    model, handle = reward(DeadlineExceeded("reward/rm did not finish RewardModel.score within 7 s."))
    handle.pulses = iter([Silent("reward/rm gave no sign of life within 30 s")])
    with pytest.raises(RoleDied, match="gave no sign of life within 30 s"):
        model.score_all([conversation(["4"])], Allowance(7.0))


def mixed(*answers, group=None):
    """The outcomes of a mix of reward models, `first` with weight 1 and further ones with weight 10."""
    names = ["first", "second"][: len(answers)]
    mix = [ModelReward(kind="model", name=n, path="x", weight=10.0**i) for i, n in enumerate(names)]
    scorers = {n: Scorer([[Answering(a)]], as_sampled, 256) for n, a in zip(names, answers, strict=True)}
    with build(RewardMix(mix=mix), None, Deadlines(), True, scorers) as stage:
        stage.submit(group or conversation(["4"]))
        [scored] = stage.finished(0.1)
    return scored.outcomes


def test_several_reward_models_in_one_mix():
    assert mixed(lambda s: [0.5], lambda s: [2.0]) == (Score(20.5, {"first": 0.5, "second": 2.0}),)


def test_a_score_that_is_no_number_is_a_failure():
    assert mixed(lambda s: [float("nan")]) == (Failure("not_a_number", "first: the reward is nan"),)


@pytest.mark.parametrize("debug", [True, False])
def test_a_dead_reward_model_stops_the_run(debug):
    mix = RewardMix(mix=[ModelReward(kind="model", path="x")])
    scorers = {"model": Scorer([[Answering(RoleDied("reward/model died"))]], as_sampled, 256)}
    with build(mix, None, Deadlines(), debug, scorers) as stage, pytest.raises(RoleDied, match="reward/model died"):
        stage.submit(conversation(["4"]))
        stage.finished(5.0)


def test_a_real_model_behind_its_handle(folder):
    model = RewardModel(spec(folder), Rank())
    recipe = ModelReward(kind="model", path=str(folder))
    scored = Model(recipe, Scorer([[LocalHandle("reward/model", model)]], as_sampled, 256))
    groups = [conversation(["4", "five"]), conversation(["12345678"])]
    together = scored.score_all(groups, Allowance(60.0))
    assert together == [pytest.approx(model.score(as_sampled(group)), abs=1e-5) for group in groups]


@pytest.mark.parametrize(
    ("isolation", "notes"),
    [("bubblewrap", ["reward `mine`: bubblewrap keeps the programs it runs from everything else."]), ("none", [])],
)
def test_a_run_notes_what_keeps_programs_where_they_belong(isolation, notes):
    found = []
    mix = RewardMix.model_validate({"mix": [{"kind": "code", "name": "mine", "isolation": isolation}]})
    recipe = SimpleNamespace(rewards=mix, deadlines=Deadlines())
    stage = SimpleNamespace(recipe=recipe, debug=True, events=SimpleNamespace(note=found.append))
    reward_models.scoring(stage, mix, {}).close()
    assert found == notes


def test_errors_of_loading_name_the_line_of_the_reward():
    class Stage:
        debug = False
        recipe = type("Recipe", (), {"rewards": RewardMix(mix=[ModelReward(kind="model", path="/nowhere/rm")])})()

    with pytest.raises(reward_models.ModelError, match=re.escape("rewards.mix.0.path: there is no folder /nowhere/rm")):
        reward_models.specs(Stage())


class Mortal(RewardModel):
    """Dies at its first question, or hangs then; what takes its place answers."""

    def __init__(self, spec, faults):
        super().__init__(spec, Rank())
        self._faults = faults

    def score(self, sequences):
        if self._faults:
            raise self._faults.pop()
        return super().score(sequences)


class Mute:
    """A process that gives no sign of life."""

    def result(self):
        raise DeadlineExceeded("no sign of life")


def mortal(folder, *faults):
    faults = list(faults)
    return LocalHandle("reward/model", Mortal(spec(folder), faults), lambda: Mortal(spec(folder), faults)), faults


@pytest.fixture
def looks(monkeypatch):
    """No look at what is lost is waited for, and rests are short."""
    monkeypatch.setattr(replicas, "_SECONDS_PER_LOOK", 0.01)
    monkeypatch.setattr(revival, "SECONDS_PER_LOOK", 0.0)
    monkeypatch.setattr(backoff, "FIRST_REST_SECONDS", 0.01)


def scoring(*handles, replaced=Deadlines(heartbeat=1.0, placement=0.1), **settings):  # noqa: B008
    recipe = ModelReward(kind="model", path="-", **settings)
    return Model(recipe, Scorer([[handle] for handle in handles], as_sampled, 256, replaced))


def sound(folder):
    return LocalHandle("other", RewardModel(spec(folder), Rank()))


GROUPS = [make_group(["4", "5"])]


@pytest.mark.parametrize(
    "fault", [RoleDied("killed by the test"), DeadlineExceeded("no answer")], ids=["dies", "hangs"]
)
def test_a_replica_that_is_lost_is_replaced_and_asked_the_same(folder, monkeypatch, fault, caplog, looks):
    handle, faults = mortal(folder, fault)
    monkeypatch.setattr(handle, "pulse", lambda within: Mute())
    assert scoring(handle).score_all(GROUPS, Allowance(9.0)) == scoring(sound(folder)).score_all(GROUPS, Allowance(9.0))
    assert not faults and "reward/model serves again" in caplog.text


def test_a_replica_that_cannot_be_replaced_stops_the_run(folder):
    handle, faults = mortal(folder, RoleDied("killed by the test"))
    with pytest.raises(RoleDied, match="killed by the test"):
        scoring(handle, replaced=None).score_all(GROUPS, Allowance(9.0))
    assert not faults


def test_a_replica_that_is_lost_again_and_again_stops_the_run_with_the_fault_that_recurs(folder, looks):
    handle, faults = mortal(folder, *[RoleDied(f"killed the {n}th time") for n in (4, 3, 2, 1)])
    said = "lost 3 times without an answer in between; max_restarts of the reward `model` is 2. .* killed the 3th time"
    with pytest.raises(GivenUp, match=said):
        scoring(handle, max_restarts=2).score_all(GROUPS, Allowance(9.0))
    assert len(faults) == 1


def test_an_answer_in_between_begins_the_count_anew(folder, looks):
    handle, faults = mortal(folder)
    model = scoring(handle, max_restarts=1)
    for _ in range(3):
        faults.append(RoleDied("killed by the test"))
        assert len(model.score_all(GROUPS, Allowance(9.0))[0]) == 2


def test_responses_that_take_every_replica_with_them_are_told_of(folder, looks):
    handles = [mortal(folder, RoleDied("killed by the test"))[0] for _ in range(3)]
    said = "2 replicas of the reward `model` were lost while they were asked about the same responses"
    with pytest.raises(GivenUp, match=said):
        scoring(*handles, max_restarts=1).score_all(GROUPS, Allowance(9.0))


def test_while_one_starts_again_the_others_are_asked_and_one_whose_start_fails_is_started_once_more(
    folder, monkeypatch, caplog, looks
):
    """The first start in its place raises, the second one takes long."""
    lost, _ = mortal(folder, RoleDied("killed by the test"))
    restart, attempts, slow = lost.restart, [], Slow()

    def restarts():
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise RoleDied("its node is gone", "reward/model")
        return slow if len(attempts) == 2 else restart()

    monkeypatch.setattr(lost, "restart", restarts)
    model = scoring(lost, sound(folder))
    answers = [model.score_all(GROUPS, Allowance(9.0))]
    while len(attempts) < 2:
        answers.append(model.score_all(GROUPS, Allowance(9.0)))
    answers += [model.score_all(GROUPS, Allowance(9.0)) for _ in range(5)]
    assert all(answer == answers[0] for answer in answers) and "serves again" not in caplog.text
    slow.fault = RoleDied("killed at its start", "reward/model")
    while "reward/model serves again" not in caplog.text:
        assert model.score_all(GROUPS, Allowance(9.0)) == answers[0]
    assert attempts == [0, 1, 2]
    assert [line.split("\n")[0] for line in caplog.messages if " is lost: " in line] == [
        f"reward/model is lost: {fault}" for fault in ("killed by the test", "its node is gone", "killed at its start")
    ]


class Slow:
    """A start that goes on until it fails."""

    fault = None

    def result(self):
        raise self.fault

    def seconds_left(self):
        return 100.0

    @classmethod
    def ready(cls, pendings, seconds):
        return [pending for pending in pendings if pending.fault]


def test_a_start_that_is_late_is_one_loss_more(folder, monkeypatch, looks):
    handle, _ = mortal(folder, RoleDied("killed by the test"))
    starts = []
    monkeypatch.setattr(handle, "restart", lambda: starts.append(late := Slow()) or late)
    monkeypatch.setattr(Slow, "fault", NotStarted("reward/model did not finish building", "reward/model"))
    with pytest.raises(GivenUp, match=r"was lost 4 times .* did not finish building"):
        scoring(handle).score_all(GROUPS, Allowance(9.0))
    assert len(starts) == 3


def test_a_replica_without_a_place_is_missed_until_a_node_joins(folder, monkeypatch, caplog, looks):
    (lost, _), (other, faults) = mortal(folder, RoleDied("killed by the test")), mortal(folder)
    other.name = "other"
    room = {"reward/model": "room for CPU 1."}
    monkeypatch.setattr(LocalHandle, "lacking", lambda handle: room.get(handle.name, ""))
    model = scoring(lost, other)
    answers = [model.score_all(GROUPS, Allowance(9.0)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] and "reward/model waits for room for CPU 1." in caplog.text
    assert isinstance(answers[0][0][0], float)

    room["other"] = "room for GPU 1."
    faults.append(RoleDied("killed by the test"))
    with pytest.raises(PlacementError, match=r"within 0.1 s .*model waits for room for CPU 1.; other waits for"):
        model.score_all(GROUPS, Allowance(9.0))
    room.clear()
    assert model.score_all(GROUPS, Allowance(9.0)) == answers[0]
    assert "serves again" in caplog.text


def test_a_replica_that_hangs_and_cannot_be_replaced_alone_is_no_failure_of_its_responses(folder):
    handle, _ = mortal(folder, Silent("no sign of life within 30 s", "reward/model"))
    with pytest.raises(RoleDied, match="no sign of life") as caught:
        scoring(handle, replaced=None).score_all(GROUPS, Allowance(9.0))
    assert caught.value.who == "reward/model"
