"""Making a model ready for training in RL."""

import torch


def prepare(model: torch.nn.Module, gradient_checkpointing: bool) -> None:
    """Evaluation mode, always: dropout would make the trained distribution differ from the sampled one."""
    model.eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for layer in model.modules():
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = True  # the layer's own flag, not its children's: only this turns checkpointing on
