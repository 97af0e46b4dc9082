"""Benchmarks by lm-evaluation-harness: a local task over a local model, and what is made of the harness's files."""

import json
import math

import pytest
import tiny_models

from rlpipe.pipelines.evaluating import benchmarks
from rlpipe.pipelines.evaluating.ends import BenchmarksFailed
from rlpipe.pipelines.run import run
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.load import load

pytestmark = pytest.mark.integration

TASK = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture
def output(tmp_path):
    """As the harness writes it: a task with two readings, one metric of the whole, and a group."""
    results = {
        "results": {
            "sums": {"acc,none": 0.75, "acc_stderr,none": 0.25, "f1,none": 0.6, "f1_stderr,none": "N/A"},
            "said": {"exact_match,strict": 0.5, "exact_match,loose": 1.0, "word_perplexity,none": 8.0},
            "both": {"acc,none": 0.625, "acc_stderr,none": 0.1},
        },
        "higher_is_better": {"sums": {"acc": True}, "said": {"word_perplexity": False}},
    }  # fmt: skip
    folder = tmp_path / "output" / "model"
    folder.mkdir(parents=True)
    (folder / "results_2026-01-01T00.json").write_text(json.dumps(results))
    rows = [{"doc_id": i, "filter": "none", "metrics": ["acc", "f1"], "acc": acc, "f1": [acc]} for i, acc in
            ((2, 1.0), (0, 1.0), (1, 0.0), (3, 1.0))]  # fmt: skip
    _write(folder / "samples_sums_2026-01-01T00.jsonl", rows)
    _write(
        folder / "samples_said_2026-01-01T00.jsonl",
        [
            {"doc_id": i, "filter": name, "metrics": ["exact_match"], "exact_match": value}
            for name, values in (("strict", (0, 1)), ("loose", (1, 1)))
            for i, value in enumerate(values)
        ],
    )
    return tmp_path / "output"


def _write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_measured_question_by_question_is_kept_so(output):
    found = benchmarks.read(output)
    assert found.questions == {
        "sums/acc": [1.0, 0.0, 1.0, 1.0],
        "said/exact_match@strict": [0.0, 1.0],
        "said/exact_match@loose": [1.0, 1.0],
    }
    assert found.wholes["both/acc"] == (0.625, 0.1)
    assert found.wholes["sums/f1"][0] == 0.6 and math.isnan(found.wholes["sums/f1"][1])
    assert found.lower_is_better == ["said/word_perplexity"]


def test_no_results_are_no_silence(tmp_path):
    with pytest.raises(BenchmarksFailed, match="no results"):
        benchmarks.read(tmp_path)


def test_without_the_harness_nothing_begins(monkeypatch):
    monkeypatch.setattr(benchmarks, "PACKAGE", "lm_eval_that_is_not_there")
    recipe = load("arithmetic/eval", ["benchmarks={tasks: [gsm8k]}"])
    with pytest.raises(BenchmarksFailed, match=r"pip install 'rlpipe\[eval\]'"):
        benchmarks.require(recipe)


def test_regressions_of_benchmarks_need_benchmarks():
    load("arithmetic/eval", ["benchmarks={tasks: [gsm8k]}", "regressions={gsm8k/exact_match@strict-match: 0.01}"])
    with pytest.raises(RecipeError, match="gsm8k/acc is not measured here"):
        load("arithmetic/eval", ["regressions={gsm8k/acc: 0.01}"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = [
        {"prompt": f"{a}+1", "answer": str(a + 1), "choices": [str(a + 1), str(a + 2)], "label": 0} for a in range(12)
    ]
    _write(folder / "sums.jsonl", rows)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "sums.yaml").write_text(TASK.format(file=folder / "sums.jsonl"))
    for seed in (0, 1):
        tiny_models.save_model(folder / f"model-{seed}", seed=seed)
    return folder


def recipe(world, **settings) -> EvalRecipe:
    return EvalRecipe.model_validate(
        {
            "task": "eval",
            "models": {name: {"path": str(world / f"model-{i}")} for i, name in enumerate(("old", "new"))},
            "data": {"kind": "records", "path": str(world / "sums.jsonl")},
            "part": "all",
            "rewards": {"mix": [{"kind": "exact"}]},
            "rollout": {"engine": "transformers", "max_new_tokens": 4},
            "evaluation": {"samples": 1, "pass_at": [1]},
            "tracking": {"tensorboard": False},
            "benchmarks": {"tasks": ["sums"], "include_path": str(world / "tasks"), **settings},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["hf", pytest.param("vllm", marks=pytest.mark.soak)])
def test_a_local_task_stands_in_the_same_table(backend, world, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # as a training of an earlier stage leaves it with --debug
    assert run(recipe(world, limit=10, backend=backend), tmp_path / "run", debug=True) == 0
    data = json.loads((tmp_path / "run" / "comparison.json").read_text())
    for i, name in enumerate(("old", "new")):
        expected = [_prefers_the_right_one(world / f"model-{i}", f"{a}+1", a) for a in range(10)]
        assert data["models"][name]["metrics"]["sums/acc"]["value"] == pytest.approx(sum(expected) / 10)
        assert data["models"][name]["metrics"]["sums/acc"]["prompts"] == 10
    assert data["models"]["new"]["against"]["sums/acc"]["test"] == "McNemar, exact"


def _prefers_the_right_one(folder, prompt, a) -> bool:
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), tiny_models.load(folder)

    def likelihood(answer):
        ids, said = (tokenizer(text, return_tensors="np")["input_ids"][0] for text in (prompt, answer))
        return tiny_models.teacher_forced(model, ids, said).sum()

    return likelihood(str(a + 1)) > likelihood(str(a + 2))


@pytest.mark.slow
def test_the_harness_says_why_it_failed(world, tmp_path, capsys):
    wrong = recipe(world).model_copy(
        update={"benchmarks": recipe(world).benchmarks.model_copy(update={"tasks": ["sumz"]})}
    )
    assert run(wrong, tmp_path / "run", debug=True) == 1
    assert "sumz" in capsys.readouterr().out
