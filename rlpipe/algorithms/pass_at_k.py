"""pass@k from n samples of which c are right."""

from math import comb


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that one of k samples is right, unbiased: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, equation 1. Raises ValueError for fewer samples than k.
    """
    if samples < k:
        raise ValueError(f"pass@{k} needs {k} samples, there are {samples}")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)
