"""A model under DeepSpeed: ZeRO stages, the optimizer, and optimizer steps over any number of micro-batches."""

import math
from typing import TYPE_CHECKING

import torch

from rlpipe.recipe.training import Optimizer
from rlpipe.training.optimizer import adamw
from rlpipe.training.resting import Resting, give_to_other_processes, tensors_in
from rlpipe.training.schedule import learning_rate
from rlpipe.training.sharding import Sharding, deepspeed_config, size

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class NonFiniteGradient(ArithmeticError):
    """The gradient of an optimizer step is NaN or infinite; the run must not go on from there."""


class TrainingEngine:
    """One model, its optimizer and DeepSpeed, on this rank.

    Per micro-batch, call the model (`module`) and `backward`; then `step`; every rank the same number of times.
    Gradients of all micro-batches and ranks are added, never averaged.
    """

    def __init__(
        self, model: torch.nn.Module, dtype: torch.dtype, sharding: Sharding, optimizer: Optimizer, total_steps: int
    ) -> None:
        import deepspeed

        self._on_gpu = on_gpu = torch.cuda.is_available()
        parameters = sum(size(p).numel() for p in model.parameters() if p.requires_grad)
        config = deepspeed_config(dtype, sharding, optimizer.max_grad_norm, parameters, on_gpu)
        self._settings = optimizer
        self._total_steps = total_steps
        self._adamw = adamw(model, optimizer)
        self._module: DeepSpeedEngine = deepspeed.initialize(
            model=model, optimizer=self._adamw, config=config, dist_init_required=False
        )[0]
        self._resting: Resting | None = None
        """What only steps need."""
        self._all_resting: Resting | None = None
        """And the rest, while that is away, too."""
        self._clip_here = config["gradient_clipping"] == 0.0
        # Alone, a rank has nobody to reduce with; stages 1 to 3 need the call, stage 0 would only copy.
        if self.world == 1 and config["zero_optimization"]["stage"] == 0:
            self._module.enable_backward_allreduce = False

    @property
    def module(self) -> "DeepSpeedEngine":
        """The model under DeepSpeed, its weights where they compute: whoever asks for it wants to use them."""
        if self._all_resting is not None:
            self._all_resting.end()
            self._all_resting = None
        return self._module

    @property
    def model(self) -> torch.nn.Module:
        """The bare model."""
        return self.module.module

    @property
    def world(self) -> int:
        return self._module.world_size

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken since the beginning of the run."""
        return self._module.global_steps

    def rest(self) -> None:
        """Until the next step, keep in host memory what only a step needs, for a role on the same GPU to have the room:
        AdamW's running means, and with ZeRO the float32 weights. On a CPU there is nothing to be gained."""
        if self._on_gpu:
            self._put_steps_away()

    def give_way(self) -> None:
        """Keep everything in host memory, also the weights and what DeepSpeed keeps of gradients, for another process
        to have the GPU, until `module` is used."""
        self._put_steps_away()
        if self._all_resting is None:
            self._all_resting = Resting(self._everything())
            give_to_other_processes()

    def wake(self) -> None:
        """Bring back what was put away. `backward` does it by itself."""
        _ = self.module
        if self._resting is not None:
            self._resting.end()
            self._resting = None

    def _put_steps_away(self) -> None:
        if self._resting is None:
            self._resting = Resting(self._needed_by_steps())

    def _everything(self) -> list[torch.Tensor]:
        """All that lies where the model computes, as far as it is known by somebody: DeepSpeed keeps flat copies,
        shares and sums of gradients in its optimizer."""
        parameters = list(self._module.module.parameters())
        shares = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]  # of ZeRO-3
        gradients = [p.grad for p in parameters if p.grad is not None]
        held = [*parameters, *shares, *gradients, *self._module.module.buffers(), *tensors_in(self._module.optimizer)]
        device = self._module.device.type
        return [tensor for tensor in held if tensor.device.type == device]

    def _needed_by_steps(self) -> list[torch.Tensor]:
        sharded = self._module.zero_optimization()
        masters = list(self._adamw.state) if sharded else []  # else the model's own weights
        kept = [value for state in self._adamw.state.values() for value in state.values()]
        # bitsandbytes counts steps in a number, and what it pages goes to the host by itself.
        return masters + [value for value in kept if torch.is_tensor(value) and not getattr(value, "is_paged", False)]

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add this micro-batch's gradient; `last` says that `step` comes next."""
        self.wake()
        self.module.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the losses of the ranks are shares of one sum.
        self.module.backward(loss * self.world, scale_wrt_gas=False)

    def step(self) -> tuple[float, float]:
        """Take the optimizer step; returns its learning rate and the gradient's global norm before clipping.

        Raises `NonFiniteGradient` and leaves the weights as they were if that norm is NaN or infinite.
        """
        rate = learning_rate(self._settings, self.steps_done, self._total_steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        norm = self._clip() if self._clip_here else None
        self.module.step()
        if norm is None:
            # ZeRO skips the update by itself and reports an infinite norm.
            norm = _finite(self.module.get_global_grad_norm(), self.steps_done)
        return rate, norm

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.max_grad_norm)
        return _finite(norm, self.steps_done + 1)


def _finite(norm: torch.Tensor | float, step: int) -> float:
    norm = float(norm)
    if not math.isfinite(norm):
        raise NonFiniteGradient(
            f"optimizer step {step}: the gradient's norm is {norm}; the step was not taken. Look at the loss and the "
            "mismatch metrics of the steps before; a lower train.optimizer.learning_rate is the usual remedy"
        )
    return norm
