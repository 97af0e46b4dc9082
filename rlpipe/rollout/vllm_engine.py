"""vLLM in the hosting process, stepped by its host."""

import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlpipe.data.flow import FinishReason, GroupRequest, Tokens, Trajectory, VersionSpan
from rlpipe.models import adapters
from rlpipe.rollout.engine import EngineSpec, Health, Receipt
from rlpipe.rollout.records import Pulse, spans_of, trajectory
from rlpipe.rollout.vllm_compat import VllmCore
from rlpipe.weights.direct import Arrived, Part, Wire
from rlpipe.weights.packing import digest_of, unpack
from rlpipe.weights.payload import Payload, WeightsRejected, check_fits

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput

LOWEST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this without saying so in its answer."""


class VllmEngine:
    """An `Engine` on vLLM's continuous batching.

    Requests wait here, not in vLLM, until there is a place for them: probes then never queue behind them. Running
    requests survive a publish with their keys and values computed again, so every token is sampled from exactly the
    policy its version span names.
    """

    def __init__(self, spec: EngineSpec) -> None:
        """With `lora_rank` it serves adapters on the folder's weights, and takes no other payloads."""
        self._core = VllmCore(spec)
        self._own_code = spec.trust_remote_code
        self._asleep = self._has_weights_room = False
        self._wire_token: str | None = None
        self._max_num_seqs = spec.max_num_seqs
        self._eos_token_ids = spec.eos_token_ids
        self._lora = _AdapterFolder() if spec.lora_rank else None
        self._ids = (str(number) for number in count())
        self._waiting: deque[_Sample] = deque()
        self._running: dict[str, _Sample] = {}
        self._finished: list[Trajectory] = []
        self._pulse = Pulse(None if spec.lora_rank else spec.version)

    def submit(self, requests: list[GroupRequest]) -> None:
        for request in requests:
            self._core.limits.check_request(request)
            _check_temperature(request)
        self._pulse.require_current()
        for request in requests:
            self._waiting.extend(_Sample(request, index) for index in range(len(request.seeds)))
            self._pulse.outstanding += len(request.seeds)

    def step(self) -> list[Trajectory]:
        if not self._asleep:
            self._admit()
        if self._running and not self._asleep:
            self._record(self._core.step())
        finished, self._finished = self._finished, []
        self._pulse.beat(finished=len(finished))
        return finished

    def publish(self, version: int, payload: Payload | Arrived) -> Receipt:
        started = time.monotonic()
        if isinstance(payload, Arrived):
            self._core.end_update()
            digest = None
        else:
            self._wake_weights()
            self._load(payload)
            digest = digest_of(payload.buckets)
        self._core.forget_cache()
        if self._asleep:
            self._core.wake_cache()
        self._asleep = self._has_weights_room = False
        self._pulse.version = version
        for sample in self._running.values():
            sample.mark(version)
        return Receipt(version, digest, time.monotonic() - started)

    def join(self, wire: Wire) -> None:
        self._core.join(wire)
        self._wire_token = wire.token

    def wire_token(self) -> str | None:
        return self._wire_token

    def take(self, part: Part) -> None:
        self._wake_weights()
        self._core.take(part)

    def _wake_weights(self) -> None:
        if self._asleep and not self._has_weights_room:
            self._core.wake_weights()
            self._has_weights_room = True

    def _load(self, payload: Payload) -> None:
        if self._lora is not None:
            self._core.load_adapter(self._lora.write(payload))
        elif payload.kind == "adapter":
            raise WeightsRejected("this engine serves full weights; start it with lora_rank to serve an adapter")
        else:
            check_fits(payload, self._shapes)
            self._core.load_weights(payload)

    def sleep(self) -> None:
        if self._has_weights_room:  # a publish was broken off; vLLM falls asleep only from wholly awake
            self._core.abandon_update()
            self._core.wake_cache()
            self._asleep = self._has_weights_room = False
        if not self._asleep:
            # Of adapters only these are sent again, so what they stand on is kept, in host memory.
            self._core.sleep(keep_weights=self._lora is not None)
        self._asleep, self._pulse.version = True, None

    def probe(self, sequences: list[Tokens]) -> list[np.ndarray]:
        from vllm.sampling_params import SamplingParams

        self._pulse.require_current()
        self._core.limits.check_probes(sequences)
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        pending = dict(zip(self._ids, sequences, strict=False))
        order = list(pending)
        for request_id, tokens in pending.items():
            self._core.add(request_id, tokens.tolist(), params, self._lora_request, first=True)
        answers: dict[str, np.ndarray] = {}
        while len(answers) < len(order):
            outputs = self._core.step()
            answers |= {o.request_id: _prompt_logprobs(o) for o in outputs if o.request_id in pending}
            self._record([o for o in outputs if o.request_id not in pending])
        return [answers[request_id] for request_id in order]

    def abort(self, group_ids: list[str]) -> None:
        doomed = set(group_ids)
        running = [i for i, sample in self._running.items() if sample.request.group_id in doomed]
        self._core.abort(running)
        for request_id in running:
            del self._running[request_id]
        self._waiting = deque(sample for sample in self._waiting if sample.request.group_id not in doomed)
        self._finished = [t for t in self._finished if t.group_id not in doomed]
        self._pulse.outstanding = len(self._waiting) + len(self._running) + len(self._finished)

    def close(self) -> None:
        self._core.close()

    def health(self) -> Health:
        return self._pulse.health()

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights in Hugging Face's form, which vLLM itself no longer has."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self._core.hf_config, trust_remote_code=self._own_code)
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    @property
    def _lora_request(self) -> "LoRARequest | None":
        return self._lora.request if self._lora is not None else None

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs:
            sample, request_id = self._waiting.popleft(), next(self._ids)
            sample.mark(self._pulse.version)
            self._running[request_id] = sample
            params = sample.sampling_params(self._eos_token_ids)
            self._core.add(request_id, sample.request.prompt_tokens.tolist(), params, self._lora_request)

    def _record(self, outputs: "list[EngineCoreOutput]") -> None:
        for output in outputs:
            sample = self._running[output.request_id]
            sample.tokens += output.new_token_ids
            sample.logprobs.append(output.new_logprobs.logprobs)
            if output.finish_reason is not None:
                self._finished.append(sample.trajectory(str(output.finish_reason)))
                del self._running[output.request_id]


@dataclass(slots=True)
class _Sample:
    """One response on its way."""

    request: GroupRequest
    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    """Per step, the new tokens' log-probabilities, shape (tokens, 1)."""
    spans: list[VersionSpan] = field(default_factory=list)

    def mark(self, version: int) -> None:
        """From the next token on, `version` is the one that samples."""
        if self.spans and self.spans[-1].first_token == len(self.tokens):
            self.spans.pop()
        self.spans.append(VersionSpan(len(self.tokens), version))

    def sampling_params(self, eos_token_ids: tuple[int, ...]) -> "SamplingParams":
        from vllm.sampling_params import SamplingParams

        sampling = self.request.sampling
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=self.request.seeds[self.index],
            stop_token_ids=[*eos_token_ids, *sampling.stop_token_ids],
            logprobs=0,  # the sampled token's own
            detokenize=False,
        )

    def trajectory(self, reason: str) -> Trajectory:
        # FinishReason raises for vLLM's other reasons, such as an error inside the engine.
        tokens, logprobs = np.array(self.tokens, np.int32), np.concatenate(self.logprobs)[:, 0]
        spans = spans_of(self.spans, len(tokens))
        return trajectory(self.request, self.index, tokens, logprobs, spans, FinishReason(reason))


class _AdapterFolder:
    """The adapter being served, as the folder vLLM loads it from.

    One id and one path for all versions: running requests go over to a new one, and a reload finds the newest.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rlpipe-adapter-")
        self.request: LoRARequest | None = None

    def write(self, payload: Payload) -> "LoRARequest":
        """The request that loads this adapter in place of the one before."""
        from vllm.lora.request import LoRARequest

        if payload.kind != "adapter" or payload.adapter_config is None:
            raise WeightsRejected(
                "this engine serves adapters on fixed weights; start it without lora_rank for full ones"
            )
        folder = Path(self._folder.name)
        adapters.write(dict(unpack(payload)), payload.adapter_config, folder)
        self.request = LoRARequest("policy", 1, str(folder))
        return LoRARequest("policy", 1, str(folder), load_inplace=True)


def _prompt_logprobs(output: "EngineCoreOutput") -> np.ndarray:
    return output.new_prompt_logprobs_tensors.logprobs[:, 0].numpy()


def _check_temperature(request: GroupRequest) -> None:
    temperature = request.sampling.temperature
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"group {request.group_id}: vLLM cannot sample at temperature {temperature}; use 0 for greedy decoding or "
            f"at least {LOWEST_TEMPERATURE}"
        )
