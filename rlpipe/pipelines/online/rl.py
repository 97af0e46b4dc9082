"""An online RL stage: start the roles, run the loop, save the policy."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.data.cursor import PromptCursor
from rlpipe.data.flow import Prompt, Sampling
from rlpipe.ledger.ledger import Ledger
from rlpipe.pipelines import episodes, reward_models, roles, sizes
from rlpipe.pipelines.answers import Answers
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.pipelines.fitting import longest, that_fit
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.beside import Beside
from rlpipe.pipelines.online.catching_up import CatchingUp
from rlpipe.pipelines.online.engine_watch import EngineWatch
from rlpipe.pipelines.online.gang import Gang
from rlpipe.pipelines.online.loop import Loop
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.pipelines.online.saving import Saving, Stateful
from rlpipe.pipelines.online.sending import FromGpu, OverHost, Send
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.online.turns import GivingWay, InTurns, Together
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL, Stage
from rlpipe.recipe.tasks import RlRecipe
from rlpipe.recipe.transport import direct_transport
from rlpipe.rewards.stage import RewardStage
from rlpipe.rollout.carriers import Ipc, Nccl
from rlpipe.rollout.environments.stage import EnvironmentStage
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Handle, Look, Within, results
from rlpipe.runtime.roles import RoleSpec
from rlpipe.training.critic import Critic
from rlpipe.training.policy import Policy
from rlpipe.weights.probes import choose_probes
from rlpipe.weights.verify import Verifier, tolerance_for


def run_rl(stage: Stage, recipe: RlRecipe) -> None:
    """Train `recipe` in `stage`; the result lies in `stage.result`."""
    with ExitStack() as stack:
        stack.callback(stage.runtime.stop)
        with stage.events.phase("start", says=_starting(recipe)):
            environment = stack.enter_context(episodes.environment_of(stage))
            algorithm = OnlineAlgorithm(roles.algorithm_settings(recipe), recipe.longest_response)
            started = stage.runtime.start(specs := _roles(stage, recipe, algorithm))
            scoring = stack.enter_context(reward_models.scoring(stage, recipe.rewards, started.handles))
            train, heldout = (that_fit(prompts, recipe.rollout, stage) for prompts in stage.prompts)
            ledger = stack.enter_context(ledger_of(stage, recipe, train, scoring.names))
            training, beside = _training(specs), Beside(stage.debug)
            gang = Gang(started, training, recipe.train.max_restarts, recipe.deadlines.heartbeat, beside)
            loop = _loop(stage, recipe, scoring, environment, algorithm, started.handles, gang, ledger, heldout)
            stack.callback(loop.saving.finish)
            scoring.ready()  # a reward that cannot be loaded is told while the models still load
            started.ready()
            _tell(stage, recipe, started.handles)
        loop.run()


def _roles(stage: Stage, recipe: RlRecipe, algorithm: OnlineAlgorithm) -> list[RoleSpec]:
    """Those that the algorithm and the rewards need."""
    policy, *others = learning(stage, recipe, algorithm)
    specs = [*reward_models.specs(stage), policy, roles.engines(stage, stage.served_path), *others]
    return sorted(specs, key=lambda spec: spec.beside is not None)  # built when those have what they need


def learning(stage: Stage, recipe: RlRecipe, algorithm: OnlineAlgorithm) -> list[RoleSpec]:
    """Those that take part in an update, the policy first."""
    specs = [roles.policy(stage)]
    specs += [roles.reference(stage)] if _has_own_reference(recipe, algorithm) else []
    return specs + ([roles.critic(stage)] if algorithm.needs_critic else [])


def _training(specs: list[RoleSpec]) -> list[str]:
    """Those that cannot be replaced alone: policy and critic must stand at the same step, whoever lives in their
    processes dies with them, and of a model that is split a rank is of no use without the others."""
    return [spec.name for spec in specs if spec.again is None]


def _has_own_reference(recipe: RlRecipe, algorithm: OnlineAlgorithm) -> bool:
    """With an adapter the policy's ranks are the reference, too: the adapter is off while they answer as that."""
    return algorithm.needs_reference and recipe.adapter is None


def _tell(stage: Stage, recipe: RlRecipe, handles: dict[str, list[Handle[Any]]]) -> None:
    """What training is like, as the first rank knows it."""
    within = Within("train", recipe.deadlines.train)
    on_gpu = handles[roles.POLICY][0].call(within, Policy.on_gpu).result()
    stage.events.emit("trains_on", device="cuda" if on_gpu else "cpu")
    if recipe.adapter is not None:
        sizes.tell(stage, *handles[roles.POLICY][0].call(within, Policy.sizes).result())
    if recipe.critic.adapter is not None:
        counts = handles["critic"][0].call(within, Critic.sizes).result()
        stage.events.note(f"critic, {sizes.trainable(*counts)}")


def _starting(recipe: RlRecipe) -> str:
    engines, ranks = recipe.rollout.engines, recipe.train.ranks
    what = f"{engines} {recipe.rollout.engine} engine{'s' * (engines > 1)}"
    return f"starting {what} and {ranks} DeepSpeed rank{'s' * (ranks > 1)}"


def ledger_of(stage: Stage, recipe: RlRecipe, train: list[Prompt], rewards: Sequence[str]) -> Ledger:
    """A lease is good for as long as an answer and its reward may take."""
    seconds = episodes.longest_episode(stage) + recipe.deadlines.reward
    return Ledger(stage.storage, PromptCursor(train, recipe.seed), rewards, seconds)


def _loop(
    stage: Stage,
    recipe: RlRecipe,
    scoring: RewardStage,
    environment: EnvironmentStage | None,
    algorithm: OnlineAlgorithm,
    handles: dict[str, list[Handle[Any]]],
    gang: Gang,
    ledger: Ledger,
    heldout: list[Prompt],
) -> Loop:
    pool = EnginePool({roles.POLICY: handles["engine"]}, recipe.deadlines, recipe.rollout.max_restarts)
    rollouts = episodes.over(pool, environment, stage)
    group_size, resampling = recipe.algorithm.group_size, recipe.algorithm.dynamic_sampling
    sampling = Sampling(recipe.rollout.max_new_tokens, recipe.rollout.temperature, stage.stop_token_ids)
    evaluator = Evaluator(stage, heldout)
    answers = Answers(roles.POLICY, rollouts, scoring, stage.tokenizer)
    admission = Admission(recipe.schedule, recipe.run)
    together = bool(_training(reward_models.specs(stage)))
    sampler = Sampler(ledger, admission, answers, scoring, sampling, group_size, recipe.seed, together)
    trainer = trainer_of(recipe, algorithm, handles, sampler.first_ready)
    publisher = _publisher(stage, recipe, handles, pool, heldout, sampler.first_ready)
    turns = Together() if recipe.placement == "split" else InTurns(roles.POLICY, pool, publisher)
    saving = saving_of(stage, recipe, handles, {"kl": trainer.kl, "admission": admission}, ledger)
    return Loop(
        schedule=recipe.schedule,
        resampling_rounds=resampling.max_rounds if resampling else 0,
        evaluate_every=recipe.evaluation.every,
        ledger=ledger,
        sampler=sampler,
        trainer=trainer,
        publisher=publisher,
        evaluate=lambda: evaluator.run(answers, sampler.keep),
        saving=saving,
        gang=gang,
        turns=turns,
        finish=partial(_save_result, stage, saving, handles[roles.POLICY]),
        admission=admission,
        engine_watch=EngineWatch(roles.POLICY, pool, stage.events),
        catching_up=CatchingUp(ledger, admission, trainer, publisher, saving, sampler, turns, stage.events),
        events=stage.events,
    )


def trainer_of(
    recipe: RlRecipe, algorithm: OnlineAlgorithm, handles: dict[str, list[Handle[Any]]], look: Look
) -> Trainer:
    return Trainer(
        handles,
        algorithm,
        recipe.train,
        recipe.algorithm.group_size,
        recipe.deadlines.train,
        critic_warmup=recipe.critic.warmup_steps,
        taking_turns=recipe.critic.share is not None,
        look=look,
    )


def saving_of(
    stage: Stage,
    recipe: RlRecipe,
    handles: dict[str, list[Handle[Any]]],
    driver: dict[str, Stateful],
    ledger: Ledger,
) -> Saving:
    """A checkpoint holds the policy as a model, or as the adapter that is all of it that is trained."""
    save = _save_model if recipe.adapter is None else _save_adapter
    folder = FINAL_MODEL if recipe.adapter is None else FINAL_ADAPTER
    return Saving(
        stage.directory,
        recipe.train,
        recipe.schedule.steps,
        handles,
        driver,
        ledger,
        lambda checkpoint: save(stage, handles[roles.POLICY], checkpoint / folder),
        _layout(recipe, handles),
        recipe.deadlines.train,
        stage.events,
        Beside(stage.debug),
    )


def _layout(recipe: RlRecipe, handles: dict[str, list[Handle[Any]]]) -> dict[str, int]:
    """What a checkpoint hangs on, by the recipe's keys."""
    layout = {"train.ranks": len(handles[roles.POLICY]), "train.zero_stage": recipe.train.zero_stage}
    if "critic" not in handles:
        return layout
    shared = {} if recipe.critic.share else {"critic.ranks": len(handles["critic"])}
    return layout | shared | {"critic.zero_stage": recipe.critic.zero_stage}


def _publisher(
    stage: Stage,
    recipe: RlRecipe,
    handles: dict[str, list[Handle[Any]]],
    pool: EnginePool,
    heldout: list[Prompt],
    look: Look,
) -> Publisher:
    probes = choose_probes([p.tokens for p in heldout], len(stage.tokenizer), longest(recipe.rollout, stage))
    by_change = recipe.publishing.base == "original"
    verifier = Verifier(tolerance_for(recipe.publishing.tolerance, stage.dtype), by_change)
    return Publisher(
        roles.POLICY,
        handles[roles.POLICY],
        _send(stage, recipe, handles),
        pool,
        verifier,
        probes,
        recipe.deadlines.publish,
        look,
        GivingWay(_on_shared_gpus(recipe, handles), Within("train", recipe.deadlines.train)),
    )


def _send(stage: Stage, recipe: RlRecipe, handles: dict[str, list[Handle[Any]]]) -> Send:
    """On the way that the recipe says. In one process all is in its memory."""
    policy, engines, within = handles[roles.POLICY], handles["engine"], Within("publish", recipe.deadlines.publish)
    over_host, transport = OverHost(policy, within), None if stage.debug else direct_transport(recipe)
    if transport is None:
        return over_host
    each = len(policy) // len(engines)
    ranks = {engine.name: range(i * each, (i + 1) * each) for i, engine in enumerate(engines)}
    carriers = {
        "nccl": lambda described: Nccl(policy, described, recipe.rollout.tensor_parallel, within),
        "ipc": lambda described: Ipc(policy, ranks, recipe.train.zero_stage == 3, within),
    }
    setting = f"publishing.transport={transport}"
    otherwise = over_host if recipe.publishing.transport == "auto" else None
    return FromGpu(policy, carriers[transport], otherwise, setting, within)


def _on_shared_gpus(recipe: RlRecipe, handles: dict[str, list[Handle[Any]]]) -> dict[str, list[Handle[Any]]]:
    """The roles that learn where engines generate."""
    if recipe.placement == "split":
        return {}
    names = [roles.POLICY, *(["critic"] if recipe.critic.share else [])]
    return {name: handles[name] for name in names if name in handles}


def _save_result(stage: Stage, saving: Saving, policy: list[Handle[Policy]]) -> None:
    with stage.events.phase("save", says="saving the model"):
        saving.choose()
        _save_model(stage, policy, stage.result)
        if stage.recipe.adapter is not None:
            _save_adapter(stage, policy, stage.directory / FINAL_ADAPTER)


def _save_model(stage: Stage, policy: list[Handle[Policy]], folder: Path) -> None:
    within = Within("train", stage.recipe.deadlines.train)
    results([rank.call(within, Policy.save, str(folder)) for rank in policy])
    # The policy's ranks copied the base model's tokenizer; this one also has the recipe's chat template.
    stage.tokenizer.save_pretrained(folder)


def _save_adapter(stage: Stage, policy: list[Handle[Policy]], folder: Path) -> None:
    within = Within("train", stage.recipe.deadlines.train)
    results([rank.call(within, Policy.save_adapter, str(folder)) for rank in policy])
