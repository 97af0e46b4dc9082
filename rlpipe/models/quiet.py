"""Keeps the start-up chatter of the libraries underneath out of the terminal; their real warnings stay."""

import logging
import os
import warnings
from functools import cache


@cache
def quiet_libraries() -> None:
    """Call before the first import that brings DeepSpeed or bitsandbytes with it: transformers' models, TRL, PEFT."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one and reports that it found none
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # ORPO and CPO live there; TRL is pinned exactly
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # bitsandbytes says at import that an optional kernel package is absent.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # transformers' Trainer accumulates gradients itself and tells accelerate 1, which accelerate then reports.
    logging.getLogger("accelerate.accelerator").addFilter(
        lambda record: "Gradient accumulation steps mismatch" not in record.getMessage()
    )
    # DeepSpeed calls collectives by names that torch 2.13 is renaming.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
