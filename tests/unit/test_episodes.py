"""Episodes over the pool: tokens, masks and spans to the letter, limits, failures, and independence of the engines."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny_models
import torch
from fake_engine import FakeEngine, pool_of
from online_algorithms import algorithm

from rlpipe.data.flow import Failure, FinishReason, GroupRequest, Prompt, Said, Sampling, Score, VersionSpan
from rlpipe.data.seeds import environment_seed, turn_seed
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines.answers import group_of
from rlpipe.pipelines.online.batch import scored, token_batch, with_signal
from rlpipe.recipe.environment import GuessNumber as GuessRecipe
from rlpipe.recipe.rewards import EnvironmentReward, ExactReward
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.environment import FromEnvironment
from rlpipe.rewards.exact import Exact
from rlpipe.rewards.mix import Mix
from rlpipe.rewards.reward import Allowance
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.environments import End, Reply
from rlpipe.rollout.environments.guess_number import GuessNumber
from rlpipe.rollout.environments.stage import EnvironmentStage
from rlpipe.rollout.episodes import EpisodeLimits, Episodes
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.turn_marks import TurnMarks
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.local import LocalHandle

END, USER, ASSISTANT = 1, 3, 4
TOKENIZER = build_tokenizer()
GAME = GuessNumber(GuessRecipe(kind="guess_number", max_turns=3, discount=0.25))
CHAT = [{"role": "user", "content": "0-9"}]


def ids(text):
    return TOKENIZER(text)["input_ids"]


PROMPT = Prompt("p", np.array([USER, *ids("0-9"), END, ASSISTANT], np.int32), "<|user|>0-9", {"answer": "7"})


def ask(group="g", seeds=(11, 12), stops=(), max_new_tokens=8):
    return GroupRequest(group, "p", PROMPT.tokens, seeds, Sampling(max_new_tokens, 1.0, stops))


def episodes(pool, environment=GAME, threads=0, seconds=5.0, max_turns=9, longest=200, prompts=(PROMPT,)):
    stage = EnvironmentStage(environment, threads, seconds)
    decode = partial(TOKENIZER.decode, skip_special_tokens=True)
    limits = EpisodeLimits(max_turns, longest)
    return Episodes(pool, stage, {p.prompt_id: p for p in prompts}, TurnMarks(TOKENIZER, True), decode, limits)


def drained(subject):
    groups = {}
    while subject._groups:
        for group in subject.finished(5.0):
            groups[group[0].group_id] = group
    return groups


def scripted(*turns):
    """Every sample says these in turn."""

    def says(request, sample):
        taken = request.prompt_tokens.tolist().count(ASSISTANT) - 1
        return turns[taken]

    return says


def test_tokens_masks_logprobs_and_spans_to_the_letter():
    engine = FakeEngine(scripted([*ids("5"), END], [*ids("7"), END]), {END})
    subject = episodes(pool_of(engine))
    subject.submit("policy", [ask(seeds=(11,))])
    (t,) = drained(subject)["g"]
    hint = [USER, *ids("higher"), END, ASSISTANT]
    assert t.prompt_tokens.tolist() == PROMPT.tokens.tolist()
    assert t.response_tokens.tolist() == [*ids("5"), END, *hint, *ids("7"), END]
    assert t.response_mask.tolist() == [1, 1, *[0] * 9, 1, 1]
    assert t.behaviour_logprobs.tolist() == [-0.125, -0.25, *[0.0] * 9, -0.125, -0.25]
    assert (t.response_tokens.dtype, t.response_mask.dtype, t.behaviour_logprobs.dtype) == (
        np.int32, np.int8, np.float32,
    )  # fmt: skip
    assert t.versions == (VersionSpan(0, 0),)
    assert (t.finish_reason, t.group_id, t.sample_index) == (FinishReason.STOP, "g", 0)
    assert (t.episode.starts, t.episode.ends, t.episode.replies) == ((0, 11), (2, 13), (Said("user", "higher"),))
    assert t.episode.outcome == Score(0.75, {"found": 1.0, "guesses": 2.0})


def test_together_they_are_the_templates_rendering_of_the_whole_conversation():
    engine = FakeEngine(scripted([*ids("9"), END], [*ids("5"), END], [*ids("7"), END]), {END})
    subject = episodes(pool_of(engine))
    subject.submit("policy", [ask()])
    for t in drained(subject)["g"]:
        turns = ("9", "lower", "5", "higher", "7")
        roles = ("assistant", "user") * 3
        messages = [*CHAT, *({"role": r, "content": c} for r, c in zip(roles, turns, strict=False))]
        rendered = TOKENIZER.apply_chat_template(messages, return_dict=False)
        assert [*t.prompt_tokens, *t.response_tokens] == rendered


def test_the_policys_tokens_are_those_the_engine_returned_though_no_text_gives_them_back():
    lone = TOKENIZER("é")["input_ids"][:1]  # half a character: decoding loses it
    assert TOKENIZER(TOKENIZER.decode(lone))["input_ids"] != lone
    engine = FakeEngine(scripted([*lone, END], [*lone, *lone, END], [END]), {END})
    subject = episodes(pool_of(engine))
    subject.submit("policy", [ask(seeds=(1,))])
    (t,) = drained(subject)["g"]
    turns = [t.response_tokens[a:b].tolist() for a, b in zip(t.episode.starts, t.episode.ends, strict=True)]
    assert turns == [[*lone, END], [*lone, *lone, END], [END]]
    assert [r.prompt_tokens.tolist() for r in engine.requests[1:]] == [
        [*t.prompt_tokens, *t.response_tokens[:start]] for start in t.episode.starts[1:]
    ]


def test_each_turn_has_a_seed_and_an_id_of_its_own():
    engine = FakeEngine(scripted([*ids("5"), END], [*ids("5"), END], [*ids("7"), END]), {END})
    subject = episodes(pool_of(engine))
    subject.submit("policy", [ask(seeds=(11, 12))])
    drained(subject)
    first, *rest = engine.requests
    assert (first.group_id, first.seeds) == ("g", (11, 12))
    assert {r.group_id: r.seeds for r in rest} == {
        "g/s0/t1": (turn_seed(11, 1),), "g/s1/t1": (turn_seed(12, 1),),
        "g/s0/t2": (turn_seed(11, 2),), "g/s1/t2": (turn_seed(12, 2),),
    }  # fmt: skip
    assert len({seed for r in engine.requests for seed in r.seeds}) == 6
    assert turn_seed(11, 0) == 11


def test_a_group_is_under_way_until_its_last_episode_ends():
    subject = episodes(pool_of(FakeEngine(scripted([*ids("5"), END], [*ids("7"), END]), {END})))
    subject.submit("policy", [ask()])
    while not subject._talking:
        assert subject.finished(0.0) == []
    with pytest.raises(ValueError, match="groups submitted twice: g"):
        subject.submit("policy", [ask()])
    assert drained(subject).keys() == {"g"} and subject.finished(60.0) == []


def test_a_later_turn_may_be_of_newer_weights():
    engine = FakeEngine(scripted([*ids("5"), END], [*ids("6"), END], [*ids("7"), END]), {END})

    class Publishes(Always):
        def step(self, state, response):
            engine.version = {"5": 3, "6": 3}[response.text] if response.text != "7" else 3
            return Reply("go") if response.text != "7" else End(1.0)

    subject = episodes(pool_of(engine), Publishes())
    subject.submit("policy", [ask(seeds=(11,))])
    (t,) = drained(subject)["g"]
    assert t.versions == (VersionSpan(0, 0), VersionSpan(t.episode.starts[1], 3))


class Always:
    """Answers everything alike."""

    def __init__(self, answer=None):
        self.answer, self.heard, self.began = answer or Reply("go", reward=0.5, components={"part": 1.0}), [], []

    def reset(self, columns, seed):
        self.began.append((columns, seed))
        return self

    def step(self, state, response):
        self.heard.append(response)
        return self.answer

    def start(self): ...
    def ready(self): ...
    def close(self): ...


def test_an_environment_is_told_the_row_and_what_was_said():
    environment = Always(End())
    subject = episodes(pool_of(FakeEngine(scripted([*ids("42"), END]), {END})), environment)
    subject.submit("policy", [ask(seeds=(11,))])
    (t,) = drained(subject)["g"]
    assert environment.began == [({"answer": "7", "prompt": "<|user|>0-9", "sample_index": 0}, environment_seed(11))]
    (heard,) = environment.heard
    assert (heard.text, heard.tokens, heard.complete) == ("42", (*ids("42"), END), True)
    assert t.episode.outcome is None


@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        ({"max_turns": 3}, FinishReason.TURNS, 3),
        ({"longest": 6 + 2 + 5 + 2 + 5 + 1}, FinishReason.LENGTH, 3),  # room for one token of the third turn
        ({"longest": 6 + 2 + 5 + 2 + 5}, FinishReason.LENGTH, 2),  # for none
        ({"max_new_tokens": 1}, FinishReason.LENGTH, 1),
    ],
)
def test_what_is_cut_short_says_so_and_ends_with_the_policys_token(limits, reason, turns):
    request = ask(seeds=(11,), max_new_tokens=limits.pop("max_new_tokens", 8))
    environment = Always()
    engine = FakeEngine(lambda request, sample: [*ids("5"), END], {END})
    subject = episodes(pool_of(engine), environment, **limits)
    subject.submit("policy", [request])
    (t,) = drained(subject)["g"]
    assert (t.finish_reason, len(t.episode.starts)) == (reason, turns)
    assert t.response_mask[-1] == 1 and t.episode.ends[-1] == len(t.response_tokens)
    assert len(t.episode.replies) == turns - 1
    assert t.episode.outcome == Score(0.5, {"part": 1.0})
    assert len(t.prompt_tokens) + len(t.response_tokens) <= limits.get("longest", 200)
    assert [heard.complete for heard in environment.heard][-1] == (reason is FinishReason.TURNS or turns == 2)


class Sometimes(Always):
    """Raises or hangs in one sample of a group, at one of its calls."""

    def __init__(self, fault, at):
        super().__init__()
        self.fault, self.at, self.resets, self.release = fault, at, 0, threading.Event()

    def reset(self, columns, seed):
        self.resets += 1
        bad = self.resets == 2
        if bad and self.at == "reset":
            self.fail()
        return {"bad": bad, "steps": 0}

    def step(self, state, response):
        state["steps"] += 1
        if state["bad"] and self.at == f"step {state['steps']}":
            self.fail()
        return End(1.0) if state["steps"] == 2 else Reply("go")

    def fail(self):
        if self.fault == "hangs":
            self.release.wait(30)
        raise ValueError("by design")


@pytest.mark.parametrize("at", ["reset", "step 1", "step 2"])
@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_a_faulty_environment_fails_its_own_trajectory_and_the_group_goes_on(fault, at):
    environment = Sometimes(fault, at)
    subject = episodes(
        pool_of(FakeEngine(lambda request, sample: [*ids("5"), END], {END})), environment, threads=1, seconds=0.2
    )
    subject.submit("policy", [ask(seeds=(11, 12, 13))])
    trajectories = drained(subject)["g"]
    environment.release.set()
    assert [t.sample_index for t in trajectories] == [0, 1, 2]
    kinds = [type(t.episode.outcome) for t in trajectories]
    assert kinds == [Score, Failure, Score]
    assert trajectories[1].episode.outcome.kind == {"raises": "exception", "hangs": "deadline"}[fault]
    assert len(trajectories[1].episode.starts) == (2 if at == "step 2" else 1)

    group = group_of(PROMPT, trajectories, TOKENIZER)
    right = Exact(ExactReward(kind="exact"))
    (_, outcome, _) = outcomes_of(replace_columns(group), right)
    assert isinstance(outcome, Failure) and outcome.message.startswith("environment: ")


def outcomes_of(group, *rewards):
    return Mix(rewards).outcomes(group, {reward.name: reward.score(group, Allowance(1.0)) for reward in rewards})


def replace_columns(group):
    return replace(group, prompt=replace(group.prompt, columns={"answer": "7"}))


def test_rewards_come_from_the_environment_and_mix_with_others():
    engine = FakeEngine(scripted([*ids("5"), END], [*ids("7"), END]), {END})
    subject = episodes(pool_of(engine))
    subject.submit("policy", [ask(seeds=(11,))])
    group = replace_columns(group_of(PROMPT, drained(subject)["g"], TOKENIZER))
    assert group.completions == ("7",)
    assert group.conversations == ((Said("assistant", "5"), Said("user", "higher"), Said("assistant", "7")),)
    (outcome,) = outcomes_of(
        group,
        FromEnvironment(EnvironmentReward(kind="environment", name="game", weight=2.0)),
        FromEnvironment(EnvironmentReward(kind="environment", name="guesses", component="guesses", weight=-0.1)),
        Exact(ExactReward(kind="exact", name="last")),
    )
    assert outcome == Score(pytest.approx(1.5 - 0.2 + 1.0), {"game": 0.75, "guesses": 2.0, "last": 1.0})
    unknown = FromEnvironment(EnvironmentReward(kind="environment", component="gess"))
    (failure,) = unknown.score(group, Allowance(1.0))
    assert failure == Failure(
        "unknown_component", "the environment has no component 'gess' (it has: 'found', 'guesses')"
    )


def test_a_reward_that_is_no_number_is_a_failure():
    subject = episodes(pool_of(FakeEngine(scripted([END]), {END})), Always(End(float("nan"))))
    subject.submit("policy", [ask(seeds=(11,))])
    (t,) = drained(subject)["g"]
    assert t.episode.outcome.kind == "not_a_number"


def test_environment_tokens_are_outside_the_loss():
    engine = FakeEngine(scripted([*ids("5"), END], [*ids("7"), END]), {END})
    subject = episodes(pool_of(engine))
    subject.submit("policy", [ask()])
    group = group_of(PROMPT, drained(subject)["g"], TOKENIZER)

    groups = [replace(group, outcomes=(Score(2.0, {}), Score(0.0, {})))]
    plain = algorithm(advantage={"kind": "return", "whiten": False})
    batch, _ = with_signal(token_batch(groups, torch.tensor([True, True])), groups, scored(groups), plain, 0.0)
    own = [*[0] * 6, 1, 1, *[0] * 9, 1, 1]
    assert batch.mask_N.tolist() == own * 2
    assert batch.advantages_N.tolist() == [2.0 * m for m in own] + [0.0] * len(own)
    assert (batch.behaviour_logprobs_N[np.array(own * 2) == 0] == 0).all()


def hashed(request, sample):
    """A guess that depends on what was said and on the seed."""
    digits = np.random.default_rng([request.seeds[sample] % 2**31, *request.prompt_tokens]).integers(0, 10)
    return [*ids(str(digits)), END]


@pytest.mark.parametrize(("engines", "per_step", "threads"), [(1, 1, 0), (3, 2, 1), (2, 1000, 4)])
def test_what_is_said_depends_on_the_seeds_alone(engines, per_step, threads):
    subject = episodes(pool_of(*(FakeEngine(hashed, {END}, per_step) for _ in range(engines))), threads=threads)
    subject.submit("policy", [ask(f"g{i}", seeds=tuple(range(100 * i, 100 * i + 4))) for i in range(8)])
    found = {g: [t.response_tokens.tolist() for t in group] for g, group in drained(subject).items()}
    reference = episodes(pool_of(FakeEngine(hashed, {END})))
    expected = {}
    for i in range(8):  # one group after the other
        reference.submit("policy", [ask(f"g{i}", seeds=tuple(range(100 * i, 100 * i + 4)))])
        expected |= {g: [t.response_tokens.tolist() for t in group] for g, group in drained(reference).items()}
    assert found == expected
    assert len({tuple(tokens) for group in found.values() for tokens in group}) > 8


def test_the_real_engine_says_the_same_in_any_company(tmp_path):
    folder = tiny_models.save_model(tmp_path)
    found = []
    for engines, places in ((1, 64), (3, 4)):
        spec = EngineSpec("transformers", str(folder), "float32", (END,), version=0, max_num_seqs=places)
        handles = [LocalHandle(f"policy[{i}]", RolloutWorker(spec)) for i in range(engines)]
        pool = EnginePool({"policy": handles}, Deadlines(), max_restarts=0)
        subject = episodes(pool, Always(Reply("go")), max_turns=3)
        stops = tuple(range(6, 60))  # a fifth of all tokens: turns end early, and seldom with the template's mark
        subject.submit("policy", [ask(f"g{i}", (i, 50 + i, 90 + i), stops, 30) for i in range(4)])
        found.append(drained(subject))
    alone, together = found
    model = tiny_models.load(folder)
    for group_id, group in alone.items():
        for one, other in zip(group, together[group_id], strict=True):
            assert one.response_tokens.tolist() == other.response_tokens.tolist()
            np.testing.assert_allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=1e-5)
            forced = tiny_models.teacher_forced(model, one.prompt_tokens, one.response_tokens)
            np.testing.assert_allclose(one.behaviour_logprobs, forced * one.response_mask, atol=1e-5)
    turns = [len(t.episode.starts) for group in alone.values() for t in group]
    assert max(turns) == 3
