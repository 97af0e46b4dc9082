"""How an evaluation ends that does not end well."""


class Regressed(RuntimeError):
    """A model is worse than the baseline by more than the recipe tolerates; the message has each metric."""


class BenchmarksFailed(RuntimeError):
    """The harness of standard benchmarks is not there, or has failed; the message has its last words."""
