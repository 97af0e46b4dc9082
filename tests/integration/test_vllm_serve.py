"""docs/serving.md over HTTP: vLLM's server answers for a base and two adapters of it at once, and as a judge."""

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

from rlpipe.recipe.judging import EndpointJudge
from rlpipe.rewards.judging.endpoint import Endpoint
from rlpipe.rewards.judging.question import Question
from rlpipe.rewards.judging.usage import Usage
from rlpipe.rewards.reward import Allowance
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


LIKELIEST = 20
"""Tokens whose log-probabilities a judge is asked for."""


@pytest.fixture
def judge(client):
    """Judges behind the server, with these keys of the recipe."""
    made = []

    def judge(**keys):
        keys = {"model": "base", "max_tokens": 1, **keys}
        made.append(Endpoint(EndpointJudge(kind="openai", url=str(client.base_url), **keys), least_mass=1e-4))
        return made[-1]

    yield judge
    for one in made:
        one.close()


def likeliest_letters(model, tokenizer, messages):
    """By letter, in any case, the probability that the answer begins with it, as far as it is among the likeliest
    tokens; and the length of the question in tokens. By the model's own forward pass."""
    import torch

    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        top = model(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(LIKELIEST)
    found = {}
    for token, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        letter = tokenizer.decode([token]).strip().lower()
        if letter.isascii() and letter.isalpha():
            found[letter] = found.get(letter, 0.0) + probability
    return found, len(ids)


def questions_and_answers(models, count):
    """Questions whose options are the two likeliest letters, and the probabilities of these."""
    from transformers import AutoTokenizer

    tokenizer, made = AutoTokenizer.from_pretrained(models[1] / "base"), []
    for number in range(50):
        messages = ({"role": "user", "content": f"Which is better, number {number}?"},)
        found, length = likeliest_letters(models[0]["base"], tokenizer, messages)
        options = tuple(sorted(found, key=found.get)[-2:])
        if len(options) == 2:
            made.append((Question(f"q{number}", messages, options, 0), [found[o] for o in options], length))
    assert len(made) >= count
    return made[:count]


def test_a_judge_has_the_probabilities_of_the_models_own_forward_pass(judge, models):
    asked, one = questions_and_answers(models, 12), judge()
    choices = one.ask([question for question, _, _ in asked], Allowance(120))
    for (_, expected, _), choice in zip(asked, choices, strict=True):
        np.testing.assert_allclose(choice.mass, sum(expected), atol=1e-5)
        np.testing.assert_allclose(choice.probabilities, np.array(expected) / sum(expected), atol=1e-5)
    assert len({round(choice.probabilities[0], 3) for choice in choices}) > 6, "they are of different minds"
    tokens = sum(length for _, _, length in asked)
    assert one.usage() == Usage(requests=12, prompt_tokens=tokens, completion_tokens=12)


def test_the_temperature_of_a_judge_changes_nothing_of_its_preference(judge, models):
    questions = [question for question, _, _ in questions_and_answers(models, 4)]
    plain, hot = (judge(temperature=degree).ask(questions, Allowance(120)) for degree in (0.0, 1.5))
    for one, other in zip(plain, hot, strict=True):
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-5)
    assert [choice.said for choice in plain] != [choice.said for choice in hot]


def test_what_vllms_server_refuses_is_a_failure_in_its_words(judge, models):
    [(question, _, _)] = questions_and_answers(models, 1)
    [unknown] = judge(model="third").ask([question], Allowance(120))
    assert unknown.kind == "http_status" and "The model `third` does not exist" in unknown.message
    long = Question("q", ({"role": "user", "content": "Which? " * 100},), ("A", "B"), 0)
    [too_long] = judge().ask([long], Allowance(120))
    assert too_long.kind == "too_long", too_long
