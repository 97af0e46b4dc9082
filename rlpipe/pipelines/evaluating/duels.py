"""Who has the better answer, the baseline or another model, as a judge says: asked in both orders.

Kept in `answers/NAME.judge.parquet`, as long as both answers and the judge are the same.
"""

from collections.abc import Mapping
from dataclasses import replace

from rlpipe.data.flow import Failure, Group, Outcome, Score
from rlpipe.pipelines import reward_models
from rlpipe.pipelines.evaluating import keys
from rlpipe.pipelines.evaluating.served import Served
from rlpipe.pipelines.evaluating.stored import Book
from rlpipe.pipelines.judges import template_of
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.rewards import RewardMix
from rlpipe.rewards.reward import RewardUnusable
from rlpipe.rewards.stage import RewardFailed, RewardStage

SECONDS_PER_LOOK = 0.5


def fight(stage: Stage, recipe: EvalRecipe, models: Mapping[str, Served], book: Book) -> None:
    """Have the judge compare every model with the baseline, where it has not yet. Raises `RewardFailed` where too many
    of its answers fail, by `judge_failure_rate`."""
    judge, base = recipe.judge, models[recipe.compared_with]
    if not template_of(judge).compares:
        raise RewardUnusable(f"judge.template={judge.template} does not compare two answers; take compare, or your own")
    left = [
        one
        for one in models.values()
        if one is not base and book.judged(one, keys.of_judgements(judge, one, base)) is None
    ]
    if not left:
        return
    mix = RewardMix(mix=[judge.model_copy(update={"weight": 1.0})], max_failure_rate=recipe.judge_failure_rate)
    asking = replace(base, recipe=base.recipe.model_copy(update={"rewards": mix}))
    try:
        with stage.events.phase("start", says="starting the judge"):
            started = stage.runtime.start(reward_models.specs(asking))
            started.ready()
        with reward_models.scoring(asking, mix, started.handles) as scoring:
            scoring.ready()
            for number, one in enumerate(left):
                _compare(stage, scoring, one, base, book, judge, number)
    finally:
        stage.runtime.stop()


def _compare(
    stage: Stage, scoring: RewardStage, one: Served, base: Served, book: Book, judge: JudgeReward, number: int
) -> None:
    pairs = zip(book.answers(base).greedy, book.answers(one).greedy, strict=True)
    duels = [_duel(theirs, ours) for theirs, ours in pairs]
    with stage.events.phase("judge", says=f"the judge compares {one.name} with {base.name}"):
        scored = _scored(stage, scoring, duels)
    try:
        scoring.check(scored, number)
    except RewardFailed as error:
        raise RewardFailed(str(error).replace("rewards.max_failure_rate", "judge_failure_rate")) from None
    book.keep_judged(
        one, keys.of_judgements(judge, one, base), [_said(group.outcomes[1], judge.name) for group in scored]
    )


def _duel(theirs: Group, ours: Group) -> Group:
    """The baseline's answer and the model's, as two responses to one prompt."""
    trajectories = tuple(replace(g.trajectories[0], sample_index=i) for i, g in enumerate((theirs, ours)))
    said = (theirs.completions[0], ours.completions[0])
    return Group(ours.group_id, theirs.prompt, trajectories, said, ())


def _scored(stage: Stage, scoring: RewardStage, duels: list[Group]) -> list[Group]:
    """In their order."""
    for duel in duels:
        scoring.submit(duel)
    found: dict[str, Group] = {}
    while len(found) < len(duels):
        found |= {group.group_id: group for group in scoring.finished(SECONDS_PER_LOOK)}
        stage.events.progress(f"{len(found)}/{len(duels)}")
    return [found[duel.group_id] for duel in duels]


def _said(outcome: Outcome, name: str) -> dict[str, object]:
    """How probable it is that the model's answer is the better one, over both orders; or why that is not known."""
    if isinstance(outcome, Failure):
        return {"win": None, "details": None, "failure": f"{outcome.kind}: {outcome.message}"}
    win = outcome.components.get(name) if isinstance(outcome, Score) else None
    return {"win": win, "details": outcome.details or None, "failure": None}
