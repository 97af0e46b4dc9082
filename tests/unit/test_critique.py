"""Critique and revision: what the environment says to the letter, what it refuses, and what decides its words."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fake_engine import FakeEngine, pool_of

from rlpipe.data.flow import Failure, FinishReason, GroupRequest, Prompt, Sampling, Score
from rlpipe.data.group_table import columns_of, groups_of
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines.answers import group_of
from rlpipe.recipe.constitution import draw, ranked, read
from rlpipe.recipe.critique import CRITIQUE_REQUEST, REVISION_REQUEST, ConstitutionEnvironment
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.run import Deadlines
from rlpipe.rollout.environments import End, Reply, Response
from rlpipe.rollout.environments.critique import CritiqueAndRevision
from rlpipe.rollout.environments.stage import EnvironmentStage, build
from rlpipe.rollout.episodes import EpisodeLimits, Episodes
from rlpipe.rollout.turn_marks import TurnMarks

END = 1
TOKENIZER = build_tokenizer()
PROMPT = {"prompt": "<|user|>Is it far?<|end|><|assistant|>", "answer": "not shown to anybody"}
SEED = 5
CONSTITUTION = """\
name: mine
version: 3
principles:
  - {id: kind, critique: "Is it kind?", revision: Be kind., preference: "Which is kinder?", tags: [tone]}
  - {id: "true", critique: "Is it true?", revision: Be truthful., preference: "Which is truer?"}
  - {id: brief, critique: "Is it brief?", revision: Be brief., preference: "Which is briefer?", tags: [tone]}
"""
EXAMPLES = """\
examples:
  - {prompt: "How far?", answer: Far off., critique: No distance., revision: Ten miles.}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    (tmp_path / "examples.yaml").write_text(EXAMPLES)
    return tmp_path


def recipe(folder, **settings):
    return ConstitutionEnvironment(
        kind="constitution", path=str(folder / "constitution.yaml"), **({"seed": SEED} | settings)
    )


def said(text, complete=True):
    return Response(text, (7,), complete)


def episode(environment, *texts, sample=0):
    state = environment.reset(PROMPT | {"sample_index": sample}, 99)
    return [environment.step(state, said(text)) for text in texts]


def drawn(folder, sample=0):
    key = f"{sample}/{PROMPT['prompt']}"
    return [p.id for p in ranked(read(folder / "constitution.yaml").principles, key, SEED)]


OWN = {"critique_request": "\nC: {principle}\n", "revision_request": "\nR: {principle} {other}\n"}
WORDS = {
    "kind": ("Is it kind?", "Be kind."),
    "true": ("Is it true?", "Be truthful."),
    "brief": ("Is it brief?", "Be brief."),
}


def test_every_round_asks_for_a_critique_and_a_revision_by_another_principle(folder):
    environment = CritiqueAndRevision(recipe(folder, rounds=2, **OWN))
    turns = episode(environment, "answer", "critique", "revision", "critique", "revision")
    first, second = drawn(folder)[:2]
    assert [turn.text for turn in turns[:4]] == [
        f"\nC: {WORDS[first][0]}\n",
        f"\nR: {WORDS[first][1]} {{other}}\n",
        f"\nC: {WORDS[second][0]}\n",
        f"\nR: {WORDS[second][1]} {{other}}\n",
    ]
    assert turns[4] == End()
    assert all(turn.role == "user" and turn.needed and turn.reward is None for turn in turns[:4])


def test_every_request_says_where_it_comes_from(folder):
    constitution = read(folder / "constitution.yaml")
    asked = episode(CritiqueAndRevision(recipe(folder)), "answer", "critique")
    origin = {"constitution": "mine", "version": 3, "digest": constitution.digest, "requests": 1}
    principle = {"principle": drawn(folder)[0], "round": 1}
    assert [json.loads(turn.note) for turn in asked] == [
        origin | principle | {"asks": "critique"},
        origin | principle | {"asks": "revision"},
    ]
    (first, *_) = episode(CritiqueAndRevision(recipe(folder, critique_request="? {principle}")), "answer")
    assert json.loads(first.note)["requests"] == "own"


def test_samples_and_seeds_draw_other_principles(folder):
    environment = CritiqueAndRevision(recipe(folder))
    every = {CRITIQUE_REQUEST.replace("{principle}", words[0]) for words in WORDS.values()}
    assert {episode(environment, "answer", sample=sample)[0].text for sample in range(20)} == every
    others = [CritiqueAndRevision(recipe(folder, seed=seed)) for seed in range(20)]
    assert {episode(other, "answer")[0].text for other in others} == every


def test_tags_choose_principles(folder):
    environment = CritiqueAndRevision(recipe(folder, tags=["tone"]))
    asked = {json.loads(episode(environment, "answer", sample=sample)[0].note)["principle"] for sample in range(20)}
    assert asked == {"kind", "brief"}


def test_examples_are_shown_once_before_the_first_request(folder):
    turns = episode(
        CritiqueAndRevision(recipe(folder, rounds=2, examples=str(folder / "examples.yaml"))), "answer", "c", "r", "c"
    )
    assert turns[0].text == (
        "Examples of how answers to other questions were criticised and rewritten:\n\nExample 1\n\n"
        "Question: How far?\n\nAnswer: Far off.\n\nCritique: No distance.\n\nNew answer: Ten miles.\n\n---\n\n"
        + CRITIQUE_REQUEST.replace("{principle}", WORDS[drawn(folder)[0]][0])
    )
    assert turns[1].text == REVISION_REQUEST.replace("{principle}", WORDS[drawn(folder)[0]][1])
    assert not any("Example" in turn.text for turn in turns[1:])


@pytest.mark.parametrize(
    ("turns", "name"), [(0, "the answer"), (1, "the critique of round 1"), (4, "the revision of round 2")]
)
def test_what_is_cut_off_or_empty_fails_and_is_named(folder, turns, name):
    environment = CritiqueAndRevision(recipe(folder, rounds=2))
    state = environment.reset(PROMPT | {"sample_index": 0}, 99)
    for _ in range(turns):
        assert isinstance(environment.step(state, said("text")), Reply)
    cut = environment.step(state, said("te", complete=False))
    assert (cut.kind, cut.message.partition(" was")[0]) == ("unfinished", name)
    assert environment.step(state, said(" \n")) == Failure("empty", f"{name} has no text")


def test_an_edit_decides_anew_only_where_it_is_drawn(folder):
    keys = [f"prompt {i}" for i in range(300)]

    def decided(**settings):
        environment = CritiqueAndRevision(recipe(folder, **settings))
        return {key: environment.what_decides(key, 2) for key in keys}

    def concerns(key):
        """What is said in the two episodes of a prompt."""
        return {draw(principles, f"{sample}/{key}", SEED).id for sample in range(2)}

    before, principles = decided(), read(folder / "constitution.yaml").principles
    (folder / "constitution.yaml").write_text(CONSTITUTION.replace("Is it brief?", "Is it short?").replace("3", "4"))
    changed = {key for key, digest in decided().items() if digest != before[key]}
    assert changed == {key for key in keys if "brief" in concerns(key)}
    assert len(changed) / len(keys) == pytest.approx(1 - (2 / 3) ** 2, abs=0.1)
    (folder / "constitution.yaml").write_text(CONSTITUTION + "# words\n")
    assert decided() == before
    (folder / "constitution.yaml").write_text(CONSTITUTION.replace("Which is briefer?", "Which is shorter?"))
    assert decided() == before, "the environment never says it"
    assert not set(decided(critique_request="! {principle}").values()) & set(before.values())
    assert not set(decided(examples=str(folder / "examples.yaml")).values()) & set(before.values())


RECIPE = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
algorithm: {name: grpo}
schedule: {steps: 1, prompts_per_step: 2}
rewards: {mix: [{kind: exact}]}
environment:
  kind: constitution
  path: constitution.yaml
"""


def problems(folder, text=RECIPE, *changes):
    (folder / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load(folder / "r.yaml", changes)
    return str(error.value)


def test_a_recipe_names_a_constitution_beside_it(folder):
    (folder / "r.yaml").write_text(RECIPE + "  examples: examples.yaml\n")
    found = load(folder / "r.yaml", ["environment.rounds=2"]).environment
    assert (found.path, found.examples) == (str(folder / "constitution.yaml"), str(folder / "examples.yaml"))
    assert found.max_turns == 5
    assert isinstance(build(found, Deadlines(), debug=True), EnvironmentStage)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("environment.rounds=4", "rounds=4: each has a principle of its own, and there are 3 to draw"),
        ("environment.tags=[tune]", "no principle of the constitution `mine` has the tag `tune`; its tags are tone"),
        ("environment.rounds=3 environment.tags=[tone]", "rounds=3: each has a principle of its own, and there are 2"),
        ("environment.critique_request=Why?", "environment.critique_request: has no {principle}, where the words"),
        ("rewards.mix.0.kind=environment", "environment.kind=constitution gives none; choose another reward"),
        ("environment.max_turns=3", "`max_turns` does not go with `kind: constitution`"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_ask_for(folder, change, expected):
    assert expected in problems(folder, RECIPE, *change.split(" "))


def test_mistakes_in_the_files_are_mistakes_of_the_recipe(folder):
    (folder / "constitution.yaml").write_text(CONSTITUTION.replace('critique: "Is it true', 'critic: "Is it true'))
    told = problems(folder)
    assert "r.yaml:9: environment.path: " in told
    assert "constitution.yaml:5: principles.1.critic: `critic` is not a key here; did you mean `critique`?" in told
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    (folder / "examples.yaml").write_text("examples: []\n")
    told = problems(folder, RECIPE, "environment.examples=" + str(folder / "examples.yaml"))
    assert "examples.yaml:1: examples: expected a non-empty list" in told


def test_plain_text_needs_requests_of_its_own(folder):
    (folder / "texts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    plain = RECIPE.replace("{kind: arithmetic}", "{kind: records, path: texts.jsonl, chat: false, heldout: {count: 1}}")
    assert "data.chat=false puts the requests of environment.kind=constitution behind the answer" in problems(
        folder, plain
    )
    (folder / "r.yaml").write_text(
        plain
        + '  critique_request: "\\n\\nHuman: {principle}\\n\\nAssistant:"\n  revision_request: "\\n{principle}\\n"\n'
    )
    assert load(folder / "r.yaml").environment.critique_request == "\n\nHuman: {principle}\n\nAssistant:"


def ids(text):
    return TOKENIZER(text)["input_ids"]


def play(folder, longest, max_new_tokens=8, says="ok", **settings):
    """One episode over a pool whose engine says the same thing every time."""
    tokens = np.array([3, *ids("far?"), END, 4], np.int32)
    prompt = Prompt("p", tokens, PROMPT["prompt"])
    stage = EnvironmentStage(CritiqueAndRevision(recipe(folder, **settings)), 0, 5.0)
    pool = pool_of(FakeEngine(lambda request, sample: [*ids(says), END], {END}))
    decode = partial(TOKENIZER.decode, skip_special_tokens=True)
    limits = EpisodeLimits(stage._environment._recipe.max_turns, longest)
    subject = Episodes(pool, stage, {"p": prompt}, TurnMarks(TOKENIZER, True), decode, limits)
    subject.submit("policy", [GroupRequest("g", "p", tokens, (11,), Sampling(max_new_tokens, 1.0, ()))])
    (group,) = subject.finished(5.0)
    return group_of(prompt, group, TOKENIZER)


SHORT = {"critique_request": "C {principle}", "revision_request": "R {principle}"}


def test_an_episode_ends_with_the_last_revision_and_keeps_what_was_asked(folder):
    group = play(folder, 400, rounds=2, **SHORT)
    (trajectory,) = group.trajectories
    assert (trajectory.finish_reason, len(trajectory.episode.starts)) == (FinishReason.STOP, 5)
    assert trajectory.episode.outcome is None
    assert [turn.role for turn in group.conversations[0]] == ["assistant", "user"] * 4 + ["assistant"]
    table = pa.table(columns_of([_scored(group)], []))
    (again,) = groups_of(table, lambda _: group.prompt)
    assert again.conversations == group.conversations
    assert again.trajectories[0].episode == trajectory.episode
    ranking = ranked(read(folder / "constitution.yaml").principles, f"0/{PROMPT['prompt']}", SEED)
    asked = [json.loads(reply.note) for reply in again.trajectories[0].episode.replies]
    assert [(note["principle"], note["round"], note["asks"]) for note in asked] == [
        (ranking[0].id, 1, "critique"),
        (ranking[0].id, 1, "revision"),
        (ranking[1].id, 2, "critique"),
        (ranking[1].id, 2, "revision"),
    ]


def _scored(group):
    return replace(group, outcomes=(Score(0.0, {}),))


@pytest.mark.parametrize(("longest", "turns"), [(12, 1), (40, 2)])
def test_without_room_for_the_next_turn_the_episode_has_failed(folder, longest, turns):
    """Its last turn is an answer or a critique, and neither may pass for the revision."""
    (trajectory,) = play(folder, longest, **SHORT).trajectories
    assert len(trajectory.episode.starts) == turns
    assert trajectory.episode.outcome.kind == "unfinished"
    assert f"of at most {longest}, with at most 3 turns" in trajectory.episode.outcome.message


def test_a_turn_that_was_cut_off_fails_the_episode(folder):
    (trajectory,) = play(folder, 400, max_new_tokens=2, says="a long answer").trajectories
    assert trajectory.finish_reason is FinishReason.LENGTH
    assert trajectory.episode.outcome.kind == "unfinished"
    assert trajectory.episode.outcome.message.startswith("the answer was cut off")
