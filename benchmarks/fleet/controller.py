"""The controller of a run over simulated engines: the real pool, sampler, ledger, rewards, trainer and publisher."""

import contextlib
import logging
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fleet.clock import Clock
from fleet.engines import Lengths, SimulatedEngine, SimulatedPending, answered
from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.data.cursor import PromptCursor
from rlpipe.data.flow import Prompt, Sampling, Shard
from rlpipe.data.storage import Storage
from rlpipe.ledger.ledger import Ledger
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines import answers as answers_module
from rlpipe.pipelines.answers import Answers
from rlpipe.pipelines.online import publisher as publisher_module
from rlpipe.pipelines.online import sampler as sampler_module
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.engine_watch import EngineWatch
from rlpipe.pipelines.online.metrics import sample_metrics
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.pipelines.online.sending import OverHost
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.recipe.algorithm import Schedule
from rlpipe.recipe.algorithm.presets import Grpo
from rlpipe.recipe.rewards import ExactReward, RewardMix
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.recipe.run import Deadlines, Run
from rlpipe.rewards.stage import build
from rlpipe.rollout import pool as pool_module
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Within
from rlpipe.training.metrics import Mean
from rlpipe.weights.payload import Exported
from rlpipe.weights.verify import Verifier

GROUP = 8
PROBES = [np.arange(64, dtype=np.int32)] * 8
WITH_A_CLOCK = (pool_module, sampler_module, answers_module, publisher_module)
LONG = 1e9


class SimulatedPolicy:
    """A rank without a model."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.name, self._clock, self.version = name, clock, 0

    def call(self, within: Any, method: Any, /, *args: Any) -> SimulatedPending:
        with self._clock.left_out():
            value = getattr(self, method.__name__)(*args)
            return answered(self._clock, self._clock.monotonic(), value)

    def export(self) -> None:
        """The payload goes to the engines and not through the controller."""

    def exported(self) -> Exported:
        return Exported(f"digest {self.version}", 1 << 30)

    def probe(self, probes: list[np.ndarray]) -> list[np.ndarray]:
        return [answer - np.float32(self.version) * 1e-3 for answer in probe_answers()]

    def update(self, shard: Shard) -> dict[str, Mean]:
        return {"loss": Mean(1.0, 1.0)}


def probe_answers() -> list[np.ndarray]:
    return [np.linspace(-3.0, -1.0, len(probe) - 1, dtype=np.float32) for probe in PROBES]


@dataclass
class Cost:
    """Of one step: CPU seconds of the controller by phase, and what it had to do."""

    seconds: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0
    """Seconds in which it had nothing to do."""
    calls: int = 0
    """Of engines."""
    memory_gib: float = 0.0
    """Most that the process has had."""


class Controller:
    """So many engines, and steps of so many trajectories."""

    def __init__(self, folder: Path, engines: int, trajectories: int, ranks: int = 8) -> None:
        self.clock = clock = Clock()
        self.prompts_per_step = max(1, trajectories // GROUP)
        lengths, told = Lengths(), probe_answers()
        self._engines = [SimulatedEngine(f"engine[{i}]", clock, lengths, told) for i in range(engines)]
        self.pool = EnginePool({"policy": self._engines}, Deadlines(rollout=LONG), max_restarts=0)
        prompts = [_prompt(i) for i in range(4 * self.prompts_per_step)]
        tokenizer = build_tokenizer(1024)
        self._rewards = build(RewardMix(mix=[ExactReward(kind="exact")]), folder, Deadlines(), debug=False)
        self.ledger = Ledger(Storage(folder), PromptCursor(prompts, 0), self._rewards.names, LONG, clock.time)
        admission = Admission(Schedule(steps=100, prompts_per_step=self.prompts_per_step), Run())
        answers = Answers("policy", self.pool, self._rewards, tokenizer)
        sampling = Sampling(lengths.longest, 1.0, ())
        self._sampler = Sampler(self.ledger, admission, answers, self._rewards, sampling, GROUP, seed=0)
        settings = Grpo(name="grpo").model_dump(exclude={"name", "group_size", "dynamic_sampling"})
        self._policy = [SimulatedPolicy(clock, f"policy[{i}]") for i in range(ranks)]
        algorithm = OnlineAlgorithm(settings, lengths.longest)
        self._trainer = Trainer({"policy": self._policy}, algorithm, PolicyTraining(), GROUP, LONG)
        send = OverHost(self._policy, Within("publish", LONG))
        self._publisher = Publisher("policy", self._policy, send, self.pool, Verifier(1e-3), PROBES, LONG)
        events = SimpleNamespace(emit=lambda kind, **_: None, warning=lambda text: None, note=lambda text: None)
        self._watch = EngineWatch("policy", self.pool, events)
        self._cost = Cost()

    def step(self, step: int) -> Cost:
        """One step, as `Loop._step` goes."""
        self._cost = cost = Cost()
        skipped, calls = self.clock.skipped, self._calls()
        self._watch.begin()
        with self._phase("generate"):
            self._sampler.generate(self.prompts_per_step)
        with self._phase("score"):
            groups = self._sampler.scored(self.prompts_per_step, step)
        with self._phase("prepare"):
            batch, metrics = self._trainer.batch(groups)
        with self._phase("train"):
            metrics |= self._trainer.update(batch, step)
        with self._phase("record"):
            self.ledger.commit(step, batch.advantages_N[batch.offsets_B1[1:] - 1].tolist())
        self.publish(step)
        with self._phase("tell"):
            metrics |= sample_metrics(groups, []) | self._watch.tell(step)
        cost.waited, cost.calls = self.clock.skipped - skipped, self._calls() - calls
        cost.memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return cost

    def publish(self, version: int) -> None:
        for rank in self._policy:
            rank.version = version
        with self._phase("publish"):
            self._publisher.publish(version)

    def timed_publish(self, version: int) -> float:
        """CPU seconds of the controller."""
        began = self.clock.worked
        self.publish(version)
        return self.clock.worked - began

    def close(self) -> None:
        self._rewards.close()
        self.ledger.close()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = self.clock.worked
        yield
        self._cost.seconds[name] = self._cost.seconds.get(name, 0.0) + self.clock.worked - began

    def _calls(self) -> int:
        return sum(engine.calls for engine in self._engines)


def _prompt(number: int) -> Prompt:
    return Prompt(f"train-{number}-0123abcd", np.arange(10, 42, dtype=np.int32), "12+34=", {"answer": "46"})


@contextlib.contextmanager
def on_this_clock(clock: Clock) -> Iterator[None]:
    """The controller's code waits and measures by it."""
    logger = logging.getLogger("rlpipe")
    level = logger.level
    logger.setLevel(logging.ERROR)
    for module in WITH_A_CLOCK:
        module.time = clock
    try:
        yield
    finally:
        logger.setLevel(level)
        for module in WITH_A_CLOCK:
            module.time = time
