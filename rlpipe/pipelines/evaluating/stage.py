"""`task: eval`: every model answers the same prompts, then they are compared.

    for each sitting:  engines, rewards  ->  for each model: (adapter)  answer, score, own log-probabilities  -> stored
                                             the last of all, if it is the reference: what it thinks of the others
    then:              measures, tests, tables, page

A model that is stored is not asked again.
"""

from collections.abc import Mapping

from rlpipe.pipelines import roles
from rlpipe.pipelines.answering import Serving, answering
from rlpipe.pipelines.evaluating import adapters, benchmarks, duels, outcome, probing
from rlpipe.pipelines.evaluating.ends import Regressed
from rlpipe.pipelines.evaluating.questions import questions
from rlpipe.pipelines.evaluating.served import Served, Sitting, served, sittings
from rlpipe.pipelines.evaluating.stored import Book
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.evaluating import EvalRecipe


def run_evaluation(stage: Stage, recipe: EvalRecipe) -> None:
    """Ask, compare, write. Raises `Regressed` when all is written."""
    benchmarks.require(recipe)
    found, says = questions(recipe, lambda: stage.tokenizer)
    stage.events.note(says)
    models = served(stage, recipe, found)
    book = Book(stage.storage, [reward.name for reward in recipe.mix])
    reference = models.get(recipe.reference) if recipe.reference else None
    if reference is not None:
        probing.check_vocabularies(models.values(), reference)
    for sitting in sittings(list(models.values()), recipe.reference):
        _sit(stage, recipe, sitting, book, models, reference)
    if recipe.judge is not None:
        duels.fight(stage, recipe, models, book)
    measured = benchmarks.run(stage, recipe, models)
    regressions = outcome.tell(stage, recipe, models, book, reference, measured)
    if regressions:
        raise Regressed("\n".join(regressions))


def _sit(
    stage: Stage, recipe: EvalRecipe, sitting: Sitting, book: Book, models: Mapping[str, Served],
    reference: Served | None,
) -> None:  # fmt: skip
    """Have the models of a sitting do what is left of theirs; nothing is started where nothing is left."""
    left = [model for model in sitting.models if _is_unread(model, model if reference else None, book)]
    asks_reference = reference in sitting.models and any(
        model in left or _is_unread(model, reference, book) for model in models.values()
    )
    if not left and not asks_reference:
        stage.events.note(f"{sitting.names}: answered before, and not asked again")
        return
    first = sitting.models[0]
    spec = roles.engines(first, first.model_path, sitting.beside, sitting.lora_rank)
    how = ", one adapter after the other" if sitting.lora_rank else ""
    with answering(first, spec, f"starting {recipe.rollout.engine} for {sitting.names}{how}") as serving:
        publish = adapters.publisher(sitting, serving)
        for model in sitting.models:
            if model in left or (model is reference and asks_reference):
                publish(model)
            if book.answers(model) is None:
                _ask(stage, recipe, model, serving, book)
            if reference is not None:
                _read(stage, model, model, serving, book)
        for model in models.values() if asks_reference else ():
            _read(stage, model, reference, serving, book)


def _ask(stage: Stage, recipe: EvalRecipe, model: Served, serving: Serving, book: Book) -> None:
    number = list(recipe.models).index(model.name)
    evaluator = Evaluator(model, model.prompts[1])
    with stage.events.phase("evaluate", says=f"{model.name} answers {len(model.prompts[1])} prompts"):
        found = evaluator.ask(serving.answers, samples=True)
    serving.scoring.check([*found.greedy, *found.sampled], number)
    metrics = evaluator.metrics(found)
    stage.events.evaluation(number, metrics, evaluator.shown(found), asked=evaluator.asked, model=model.name)
    book.keep(model, found)


def _is_unread(model: Served, reader: Served | None, book: Book) -> bool:
    """Whether it is still to answer, or the reader, where there is one, to say how probable it finds the answers."""
    answered = book.answers(model)
    return answered is None or (reader is not None and book.logprobs(model, reader, answered) is None)


def _read(stage: Stage, model: Served, reader: Served, serving: Serving, book: Book) -> None:
    """Have the reader, whom the engines serve, say it where it has not yet."""
    answered = book.answers(model)
    if book.logprobs(model, reader, answered) is not None:
        return
    with stage.events.phase("probe", says=f"answers of {model.name} under {reader.name}"):
        engines = serving.pool.serving(roles.POLICY)
        found = probing.logprobs(reader, engines, answered.sampled, stage.events.progress)
    book.keep_logprobs(model, reader, answered, found)
