"""Math-Verify in the child process. Its own timeouts are off: they are signals; the parent's deadline is the limit."""

import functools
import logging
import resource

MEMORY_BYTES = 4 << 30


def load():
    """The judge of one (reference, response) pair. Imports sympy: about half a second."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    # `9**9**9` is evaluated as an exact integer; without a limit it takes the machine's memory before the deadline.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    import math_verify

    parse = functools.partial(math_verify.parse, parsing_timeout=None)

    @functools.lru_cache(maxsize=1024)
    def parse_reference(text: str):
        anchored = "$" in text or "\\boxed" in text
        return parse(text if anchored else f"${text}$")

    def judge(request: tuple[str, str]) -> float | str:
        """1.0 or 0.0; words if the reference cannot be read. A response without a readable answer is wrong: 0.0."""
        reference, response = request
        gold = parse_reference(reference)
        if not gold:
            return f"Math-Verify reads no answer in the reference {reference!r:.200}"
        return float(math_verify.verify(gold, parse(response), timeout_seconds=None, raise_on_error=True))

    return judge
