"""What happens in a run as metrics of Ray, which each node exports to Prometheus: one more view of the events.

The driver's node exports them, prefixed `ray_`, at the port of `ray start --metrics-export-port`, for as long as the
run goes on. Every metric has the tag `run`. Names that loops report keep their name, `/` and what else Prometheus does
not take being `_`: `mismatch/abs` is `ray_rlpipe_mismatch_abs`, `accuracy` of an evaluation
`ray_rlpipe_evaluation_accuracy`. The others:

    rlpipe_step                                    gauge    the last step that has metrics
    rlpipe_reward_component          component     gauge    mean of one component of the reward
    rlpipe_phase_last_seconds        phase         gauge    how long a phase took when it was last gone through
    rlpipe_phase_seconds_total       phase         counter  seconds of a phase, in all
    rlpipe_steps_total                             counter  steps with metrics, those of this process
    rlpipe_tokens_total                            counter  tokens that these steps have gone through
    rlpipe_engine_tokens_per_second  engine, node  gauge    throughput of an engine in the step
    rlpipe_engine_outstanding_tokens engine, node  gauge    most tokens that it had before it at once
    rlpipe_faults_total              fatal         counter  faults: of a run, of a view
    rlpipe_restarts_total            role          counter  processes that were lost and replaced
    rlpipe_warnings_total                          counter  warnings
"""

import re
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge

from rlpipe.observe.events import Event
from rlpipe.observe.metrics import label

PREFIX = "rlpipe_"
SECONDS_PER_REFRESH = 1.0
"""Half of the shortest time for which Ray keeps a gauge."""


class Sample(NamedTuple):
    """One value of a metric; of a counter, what is added."""

    name: str
    value: float
    tags: dict[str, str] = {}  # noqa: RUF012  (nobody changes it)
    """Beside `run`."""
    says: str = ""
    """What Prometheus shows as its help."""


class RayMetrics:
    """A view that sets the metrics of one stage. For a process that is connected to Ray.

    A step may take minutes, and Ray forgets a gauge that was not set during two of its reports
    (`_resolve_gauge_ttl_seconds` in ray._private.telemetry). So a thread sets them again, until `close`.
    """

    def __init__(self, run: str) -> None:
        """`run` names the stage as trackers do: `demo/grpo`."""
        self._run = {"run": run}
        self._last: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="ray-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _keep_up(self) -> None:
        while not self._closed.wait(SECONDS_PER_REFRESH):
            for sample in list(self._last.values()):
                self._set(sample)

    def _set(self, sample: Sample) -> None:
        _metric(Gauge, sample).set(sample.value, tags=self._run | sample.tags)

    def __call__(self, event: Event) -> None:
        for sample in gauges(event):
            self._last[sample.name, frozenset(sample.tags.items())] = sample
            self._set(sample)
        for sample in counters(event):
            if sample.value > 0:
                _metric(Counter, sample).inc(sample.value, tags=self._run | sample.tags)


def _metric(kind: Callable[..., Any], sample: Sample) -> Any:
    return _known(kind, sample.name, sample.says, ("run", *sample.tags))


@cache
def _known(kind: Callable[..., Any], name: str, says: str, tags: tuple[str, ...]) -> Any:
    """One for all stages of a process: Ray knows a metric by its name."""
    return kind(name, description=says, tag_keys=tags)


def gauges(event: Event) -> Iterator[Sample]:
    """What an event says of how things stand."""
    match event["kind"]:
        case "metrics":
            yield Sample(f"{PREFIX}step", float(event["step"]), says="the last step that has metrics")
            yield from (_of_step(name, value) for name, value in event["metrics"].items())
        case "evaluation":
            for name, value in event["metrics"].items():
                yield Sample(metric_name(f"evaluation/{name}"), float(value), says=_says(name))
        case "phase":
            says = "seconds of a phase when it was last gone through"
            yield Sample(f"{PREFIX}phase_last_seconds", event["seconds"], {"phase": event["phase"]}, says)
        case "engines":
            yield from (sample for engine in event["engines"] for sample in _of_engine(engine))


def counters(event: Event) -> Iterator[Sample]:
    """What an event adds to what has happened."""
    match event["kind"]:
        case "metrics":
            yield Sample(f"{PREFIX}steps_total", 1.0, says="steps with metrics")
            tokens = event["metrics"].get("tokens_per_second", 0.0) * event["metrics"].get("step_seconds", 0.0)
            yield Sample(f"{PREFIX}tokens_total", tokens, says="tokens that these steps have gone through")
        case "phase":
            yield Sample(
                f"{PREFIX}phase_seconds_total", event["seconds"], {"phase": event["phase"]}, "seconds of a phase"
            )
        case "fault":
            yield Sample(f"{PREFIX}faults_total", 1.0, {"fatal": str(event["fatal"]).lower()}, "faults")
        case "warning":
            yield Sample(f"{PREFIX}warnings_total", 1.0, says="warnings")
            if lost := event.get("lost"):
                role = {"role": lost.partition("[")[0]}
                yield Sample(f"{PREFIX}restarts_total", 1.0, role, "processes that were lost and replaced")


def _of_engine(engine: dict[str, Any]) -> Iterator[Sample]:
    tags = {"engine": engine["name"], "node": engine["node"]}
    yield Sample(f"{PREFIX}engine_tokens_per_second", engine["tokens_per_second"], tags, "throughput in the step")
    most = float(engine["most_outstanding_tokens"])
    yield Sample(f"{PREFIX}engine_outstanding_tokens", most, tags, "most tokens that it had before it at once")


def metric_name(name: str) -> str:
    """`evaluation/pass@1` as Prometheus takes it: `rlpipe_evaluation_pass_at_1`."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", name.replace("@", "_at_"))


def _of_step(name: str, value: float) -> Sample:
    if name.startswith("reward/"):  # by a tag: a component may be called like another metric
        component = {"component": name.removeprefix("reward/")}
        return Sample(f"{PREFIX}reward_component", float(value), component, "mean of one component of the reward")
    return Sample(metric_name(name), float(value), says=_says(name))


def _says(name: str) -> str:
    found = label(name)
    return f"{found.title} ({found.unit})" if found.unit else found.title
