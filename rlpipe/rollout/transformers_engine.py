"""The reference engine: plain transformers on a static cache. On CPU and small models also the fastest one."""

import time
from collections import deque

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlpipe.data.flow import GroupRequest, Tokens, Trajectory
from rlpipe.models.load import naming_the_line, resolve_dtype, safetensors_only
from rlpipe.rollout.beside import with_adapter
from rlpipe.rollout.engine import EngineSpec, Health, Receipt
from rlpipe.rollout.kv_cache import ATTENTION
from rlpipe.rollout.merged_adapter import MergedAdapter
from rlpipe.rollout.records import Limits, Pulse
from rlpipe.rollout.wave import Wave, Work, causal_mask, pad_left
from rlpipe.training.resting import Resting, give_to_other_processes
from rlpipe.weights.packing import digest_of, unpack
from rlpipe.weights.payload import Payload, WeightsRejected, check_fits

LOGITS_AT_ONCE = 2**27
"""Elements of the logits of one forward pass of `probe`, which are there in float32 three times: 1.5 GiB."""


class TransformersEngine:
    """An `Engine` that decodes in waves: groups that wait are admitted together once half the places are free, each
    prompt prefilled once, and every step decodes one token of every wave.

    Running requests survive a publish with their cache computed again, so every token is sampled from exactly the
    policy its version span names.
    """

    def __init__(self, spec: EngineSpec) -> None:
        """Raises ValueError for a model whose attention this engine cannot reproduce."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {
            "dtype": resolve_dtype(spec.dtype),
            "attn_implementation": ATTENTION,
            "revision": spec.revision,
            "trust_remote_code": spec.trust_remote_code,
        } | safetensors_only(spec.model)
        model: PreTrainedModel = naming_the_line(
            spec.model, "model", lambda: AutoModelForCausalLM.from_pretrained(spec.model, **options)
        ).to(device)
        model.requires_grad_(False).eval()
        self._model, taken = with_adapter(model, spec.model, spec.adapter) if spec.adapter else (model, 0)
        self._adapter = MergedAdapter(model) if spec.lora_rank else None
        config = model.config
        longest = config.max_position_embeddings - taken
        self._limits = Limits(min(spec.max_model_len or longest, longest), config.vocab_size)
        _check_attention(config, self._limits.max_model_len)
        self._max_num_seqs = spec.max_num_seqs
        self._eos_token_ids = spec.eos_token_ids
        self._waiting: deque[Work] = deque()
        self._waves: list[Wave] = []
        self._pulse = Pulse(None if spec.lora_rank else spec.version)
        self._asleep: Resting | None = None

    def submit(self, requests: list[GroupRequest]) -> None:
        for request in requests:
            self._limits.check_request(request)
        self._pulse.require_current()
        for request in requests:
            count = len(request.seeds)
            for start in range(0, count, self._max_num_seqs):
                self._waiting.append(Work(request, range(start, min(start + self._max_num_seqs, count))))
            self._pulse.outstanding += count

    @torch.inference_mode()
    def step(self) -> list[Trajectory]:
        if self._asleep is not None:
            return []
        self._admit()
        finished = [trajectory for wave in self._waves for trajectory in wave.step()]
        self._waves = [wave for wave in self._waves if wave.running]
        self._pulse.beat(finished=len(finished))
        return finished

    @torch.inference_mode()
    def publish(self, version: int, payload: Payload) -> Receipt:
        started = time.monotonic()
        self._wake()
        self._load(payload)
        for wave in self._waves:
            wave.renew(version)
        self._pulse.version = version
        return Receipt(version, digest_of(payload.buckets), time.monotonic() - started)

    def sleep(self) -> None:
        if self._asleep is None:
            self._asleep = Resting(self._model.parameters())
            give_to_other_processes()
        self._pulse.version = None

    def _wake(self) -> None:
        if self._asleep is not None:
            self._asleep.end()
            self._asleep = None

    @torch.inference_mode()
    def probe(self, sequences: list[Tokens]) -> list[np.ndarray]:
        self._pulse.require_current()
        self._limits.check_probes(sequences)
        longest = max(map(len, sequences), default=1)
        rows = max(1, LOGITS_AT_ONCE // (longest * self._limits.vocab_size))
        return [each for i in range(0, len(sequences), rows) for each in self._probed(sequences[i : i + rows])]

    def _probed(self, sequences: list[Tokens]) -> list[np.ndarray]:
        tokens_BT, starts_B = pad_left(sequences, self._model.device)
        columns_T = torch.arange(tokens_BT.shape[1], device=self._model.device)
        logits_BTV = self._model(
            input_ids=tokens_BT,
            attention_mask=causal_mask(starts_B, columns_T, columns_T),
            position_ids=(columns_T - starts_B[:, None]).clamp(min=0),
            use_cache=False,
        ).logits
        logprobs_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
        chosen_BT = logprobs_BTV.gather(-1, tokens_BT[:, 1:, None])[..., 0].cpu().numpy()
        return [row[start:] for row, start in zip(chosen_BT, starts_B.tolist(), strict=True)]

    @torch.inference_mode()
    def abort(self, group_ids: list[str]) -> None:
        doomed = set(group_ids)
        forgotten = sum(len(work.samples) for work in self._waiting if work.request.group_id in doomed)
        self._waiting = deque(work for work in self._waiting if work.request.group_id not in doomed)
        forgotten += sum(wave.abort(doomed) for wave in self._waves)
        self._waves = [wave for wave in self._waves if wave.running]
        self._pulse.outstanding -= forgotten

    def close(self) -> None:
        """Nothing outlives the engine."""

    def health(self) -> Health:
        return self._pulse.health()

    def _admit(self) -> None:
        """Start a new wave if enough places are free: a wave of few rows costs nearly what a full one does."""
        free = self._max_num_seqs - sum(wave.running for wave in self._waves)
        if self._waves and free < self._max_num_seqs / 2:
            return
        works = []
        while self._waiting and len(self._waiting[0].samples) <= free:
            works.append(self._waiting.popleft())
            free -= len(works[-1].samples)
        if works:
            self._waves.append(Wave(self._model, works, self._eos_token_ids, self._pulse.version))

    def _load(self, payload: Payload) -> None:
        if self._adapter is not None:
            return self._adapter.take(payload)
        if payload.kind == "adapter":
            raise WeightsRejected("this engine serves full weights; start it with lora_rank to serve an adapter")
        parameters = dict(self._model.named_parameters())
        check_fits(payload, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
        for name, tensor in unpack(payload):
            parameters[name].copy_(tensor)


def _check_attention(config: PretrainedConfig, max_model_len: int) -> None:
    """Refuse a model that would silently attend to more than it was trained to, or that keeps another state."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    slides = window is not None and getattr(config, "use_sliding_window", True) and max_model_len > window
    if kinds - {"full_attention", "sliding_attention"} or slides:
        what = f"a sliding window of {window} tokens" if slides else f"layers of type {', '.join(sorted(kinds))}"
        raise ValueError(
            f"the transformers engine cannot serve {config.model_type} with {what} at max_model_len {max_model_len}; "
            "use rollout.engine: vllm" + (f", or set rollout.max_model_len to {window} or less" if slides else "")
        )
