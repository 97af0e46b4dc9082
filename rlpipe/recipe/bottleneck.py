"""Bottleneck layers: small networks behind the sublayers of a model. Keys are those of AdapterHub's `adapters`."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from rlpipe.recipe.base import Strict


class BottleneckAdapter(Strict):
    """y + W_up f(W_down y + b_down) + b_up, with y what a sublayer adds to the residual stream (Houlsby et al. 2019,
    arXiv 1902.00751). Ours: PEFT has none."""

    kind: Literal["bottleneck"]
    """Two layers with a nonlinearity between them, behind sublayers of the model."""
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """Behind attention and feed-forward sublayers (`houlsby`), or behind feed-forward ones alone (`pfeiffer`: Pfeiffer
    et al. 2020, arXiv 2005.00247)."""
    reduction_factor: PositiveInt = 16
    """Width of the model over that of the bottleneck, which is rounded down, to 1 at the least."""
    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """The function f."""
    served_by_vllm: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False


def width(reduction_factor: int, hidden: int) -> int:
    """Of the bottleneck, in a model of width `hidden`."""
    return max(1, hidden // reduction_factor)
