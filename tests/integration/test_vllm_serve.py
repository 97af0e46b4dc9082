"""docs/serving.md over HTTP: vLLM's server answers for a base and two adapters of it at once."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from served_adapters import exported_adapters
from tiny_models import request, teacher_forced

from rlpipe.rollout.vllm_compat import ENVIRONMENT
from rlpipe.runtime.local import free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RANKS = {"first": 4, "second": 5}
PROMPTS = [request(number, prompt_length=20 + 3 * number).prompt_tokens for number in range(3)]
SECONDS_TO_START = 300


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By name, the base and each adapter on it, in transformers and PEFT; and the folder that they lie in."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.save_model(folder / "base")
    adapted = exported_adapters(folder / "base", folder, RANKS)
    return {"base": tiny_models.load(folder / "base"), **adapted}, folder


@pytest.fixture(scope="module")
def client(models, tmp_path_factory):
    """OpenAI's own client of a server in a process of its own."""
    from openai import OpenAI

    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command(models[1], port),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        wait(server, f"http://127.0.0.1:{port}/health", log)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
    finally:
        end(server)


def command(folder: Path, port: int) -> list[str]:
    """That of the guide for a CPU, with less memory and on this machine alone."""
    adapters = [f"{name}={folder / name}" for name in RANKS]
    small = ["--kv-cache-memory-bytes", str(50 << 20), "--max-num-seqs", "8", "--enforce-eager"]
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "base"),
        "--served-model-name", "base", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8",
        "--lora-modules", *adapters, "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), *small,
    ]  # fmt: skip


def end(server: subprocess.Popen) -> None:
    """And the engine's process with it."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, how)
            server.wait(30)


def wait(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"no answer within {SECONDS_TO_START} s:\n{log.read_text()[-4000:]}")


def ask(client, name, prompt):
    """The greedy answer, as tokens and their log-probabilities."""
    extra = {"ignore_eos": True, "return_token_ids": True}
    answer = client.completions.create(
        model=name, prompt=prompt.tolist(), max_tokens=8, temperature=0, logprobs=0, extra_body=extra
    )
    [choice] = answer.choices
    assert answer.model == name
    return np.array(choice.token_ids), choice.logprobs.token_logprobs


def check(answer, model, prompt) -> None:
    tokens, logprobs = answer
    assert len(tokens) == 8
    np.testing.assert_allclose(logprobs, teacher_forced(model, prompt, tokens), atol=2e-5)
    assert tokens.tolist() == greedy(model, prompt)


def greedy(model, prompt) -> list[int]:
    import torch

    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_the_server_names_the_base_and_both_adapters(client):
    assert sorted(model.id for model in client.models.list()) == ["base", "first", "second"]


def test_both_adapters_answer_at_once_as_peft_does(client, models):
    asked = [(name, prompt) for prompt in PROMPTS for name in RANKS]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: ask(client, *one), asked))
    for (name, prompt), answer in zip(asked, answers, strict=True):
        check(answer, models[0][name], prompt)
    assert answers[0][0].tolist() != answers[1][0].tolist(), "the two say different things"


def test_the_base_answers_under_its_own_name(client, models):
    """Not in one batch with adapters, which vLLM on a CPU gets wrong: test_vllm_two_adapters.py."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: ask(client, "base", prompt), PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        check(answer, models[0]["base"], prompt)


def test_a_name_that_is_not_served_is_an_error(client):
    from openai import NotFoundError

    with pytest.raises(NotFoundError, match="third"):
        ask(client, "third", PROMPTS[0])
