"""The plan of a recipe: of its task, or of the stages of a pipeline in order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlpipe.plan.architecture import Unpredictable
from rlpipe.plan.hardware import Cluster
from rlpipe.plan.model_files import ModelFacts, NoSuchModel, facts
from rlpipe.plan.roles import FindModel
from rlpipe.plan.stage import Asked, StagePlan, plan_stage
from rlpipe.recipe.model import PretrainedModel, ScratchModel
from rlpipe.recipe.references import stage_of
from rlpipe.recipe.tasks import PipelineRecipe, Recipe, StageRecipe


class Unplannable(ValueError):
    """A recipe that nothing can be said of; the message says which key it is about, and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe takes on a cluster."""

    recipe: Recipe
    cluster: Cluster
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)


def plan(recipe: Recipe, cluster: Cluster, asked: Asked) -> Plan:
    """Raises `Unplannable`."""
    return Plan(recipe, cluster, tuple(_stages(recipe, cluster, asked)))


def _stages(recipe: Recipe, cluster: Cluster, asked: Asked) -> Iterator[StagePlan]:
    made: dict[str, ModelFacts] = {}
    for name, task in tasks_of(recipe).items():
        try:
            planned = plan_stage(name, task, cluster, _finder(made), asked)
        except (NoSuchModel, Unpredictable) as error:
            raise Unplannable(f"{f'stages.{name}.' if name else ''}model.path: {error}") from error
        made[name] = planned.model
        yield planned


def tasks_of(recipe: Recipe) -> Mapping[str, StageRecipe]:
    """The stages of a pipeline by name; of another recipe itself, without one."""
    return recipe.stages if isinstance(recipe, PipelineRecipe) else {"": recipe}


def _finder(made: Mapping[str, ModelFacts]) -> FindModel:
    """What stages before made has the shapes of what they began with."""

    def find(spec: PretrainedModel | ScratchModel) -> ModelFacts:
        stage = stage_of(spec.path) if isinstance(spec, PretrainedModel) else None
        return made[stage] if stage else facts(spec)

    return find
