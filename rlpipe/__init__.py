"""rlpipe: post-training for language models on Ray, DeepSpeed and vLLM, from one recipe."""

__version__ = "0.1.0"
