"""How an evaluation ends that has found a model to be worse than it may be."""


class Regressed(RuntimeError):
    """A model is worse than the baseline by more than the recipe tolerates; the message has each metric."""
