"""A labelling stage from prompts to files, with a real judge: what is asked again after a kill or an edit, and nothing
else."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny_models
import yaml
from failing_server import Server

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.run import run
from rlpipe.recipe.constitution import draw, read
from rlpipe.recipe.load import load

pytestmark = pytest.mark.integration

TEMPLATE = {
    "version": 1,
    "options": ["A", "B"],
    "messages": [{"role": "user", "content": "{principle} {prompt} {first} {second}"}],
}
PRINCIPLES = {name: f"Prefer the {name} one." for name in ("longer", "kinder", "truer", "odder")}


def constitution(changes=()):
    told = PRINCIPLES | dict(changes)
    rows = [{"id": name, "critique": "c", "revision": "r", "preference": text} for name, text in told.items()]
    return {"name": "ours", "version": 1, "principles": rows}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(tmp_path, model):
    (tmp_path / "template.yaml").write_text(yaml.safe_dump(TEMPLATE))
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(constitution()))
    engine = {"engine": "transformers", "threads": 1}
    judge = {
        "kind": "judge", "template": "template.yaml", "constitution": "ours.yaml", "least_mass": 0.0,
        "by": {"kind": "engine", "path": str(model)} | engine,
    }  # fmt: skip
    found = {
        "task": "label", "name": "l", "model": str(model), "data": {"kind": "arithmetic", "heldout": 8},
        "responses": {"kind": "sampled", "count": 2}, "rollout": {"max_new_tokens": 4} | engine,
        "rewards": {"mix": [judge, {"kind": "exact", "weight": 0}]},
        "labels": {"prompts": 24, "heldout": 8, "prompts_per_commit": 8, "gold": "exact", "ties": "keep"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(found))
    return tmp_path / "recipe.yaml"


def label(recipe, *changes):
    directory = recipe.parent / "run"
    assert run(load(recipe, changes), directory, debug=True) == 0
    return directory


def judged(directory):
    """(first, second, principle) of each comparison: what was shown, and what was said of it."""
    rows = pd.concat(pd.read_parquet(file) for file in sorted((directory / "labels/judgements").iterdir()))
    return {(r.prompt, r["first"], r.second): (r.principle, r.better) for _, r in rows.iterrows()}


def asked(directory, phase):
    """The prompts of each pass."""
    return [len(json.loads(file.read_text())) for file in sorted((directory / phase).glob("pass-*/prompts.json"))]


def engines_started(directory):
    return sum(event["kind"] == "phase" and event["phase"] == "start" for event in events.read(Storage(directory))[0])


def test_an_edited_principle_asks_again_what_it_concerns_and_nothing_else(recipe):
    directory = label(recipe)
    before = judged(directory)
    assert asked(directory, "responses") == [32] and asked(directory, "judged") == [32]
    assert engines_started(directory) == 2
    names = {principle for principle, _ in before.values()}
    assert names == {f"ours@1/{name}" for name in PRINCIPLES}

    label(recipe)
    assert engines_started(directory) == 2, "nothing has changed, so nobody is asked"
    assert judged(directory) == before

    edited = constitution({"kinder": "Prefer the one that is kinder to animals."}) | {"version": 2}
    (recipe.parent / "ours.yaml").write_text(yaml.safe_dump(edited))
    label(recipe)
    after = judged(directory)
    kinder = {key for key, (principle, _) in before.items() if principle == "ours@1/kinder"}
    assert after.keys() == before.keys(), "the same responses"
    assert {key for key in after if after[key] != before[key]} == kinder
    assert {after[key][0] for key in kinder} == {"ours@2/kinder"}
    assert asked(directory, "responses") == [32]
    assert asked(directory, "judged") == [32, sum(principle == "ours@1/kinder" for principle in by_prompt(before))]


def by_prompt(found):
    return {prompt: principle for (prompt, _, _), (principle, _) in found.items()}.values()


def test_other_prompts_leave_what_is_there(recipe):
    directory = label(recipe)
    before = judged(directory)
    label(recipe, "labels.prompts=28")
    after = judged(directory)
    assert asked(directory, "responses") == [32, 4] and asked(directory, "judged") == [32, 4]
    assert {key: after[key] for key in before} == before


def test_what_was_asked_before_a_kill_is_not_asked_again(recipe):
    whole = label(recipe)
    expected = (whole / "labels/preferences/train.jsonl").read_text()
    whole.rename(recipe.parent / "whole")
    directory = recipe.parent / "run"
    command = [sys.executable, "-m", "rlpipe", "label", str(recipe), "--debug", "--run-dir", str(directory)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=recipe.parent)
    deadline = time.monotonic() + 120
    while not list((directory / "responses").glob("pass-*/rollouts/*.parquet")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    label(recipe)
    assert asked(directory, "responses") == [32], "the pass that was broken off went on"
    assert (directory / "labels/preferences/train.jsonl").read_text() == expected
    rows = pd.concat(pd.read_parquet(file) for file in Path(directory / "responses").rglob("*.parquet"))
    assert len(rows) == 64 and not rows.duplicated(["prompt_id", "sample_index"]).any()


REVISED = {
    "kind": "constitution", "path": "ours.yaml",
    "critique_request": "C {principle}", "revision_request": "R {principle}",
}  # fmt: skip


def said(directory):
    """By prompt: what the environment said in its two conversations, by principle; whether any ended as it should."""
    found = {}
    for file in sorted((directory / "responses").glob("pass-*/rollouts/*.parquet")):
        for prompt, rows in pd.read_parquet(file).groupby("prompt"):
            notes = [json.loads(turn["note"]) for turns in rows["turns"] for turn in turns if turn["role"] == "user"]
            whole = [json.loads(e["outcome"])["kind"] if e["outcome"] else None for e in rows["episode"]]
            found[prompt] = ({note["principle"] for note in notes}, whole)
    return found


def test_what_an_endpoint_takes_is_summed_over_sittings(recipe, monkeypatch):
    top = [{"token": token, "logprob": math.log(p)} for token, p in (("A", 0.75), ("B", 0.25))]
    choice = {
        "message": {"role": "assistant", "content": "A"},
        "logprobs": {"content": [top[0] | {"top_logprobs": top}]},
    }
    answer = {"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}
    rows = [{"prompt": f"{i}+1=", "responses": ["one", "two"]} for i in range(12)]
    (recipe.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load(recipe.read_text())
    settings["data"] = {"kind": "records", "path": "rows.jsonl", "heldout": {"count": 2}}
    settings["responses"] = {"kind": "read"}
    settings["labels"] = {"prompts": 6, "heldout": 2, "prompts_per_commit": 4}
    with Server(monkeypatch) as server:
        server.replies = [(200, {}, json.dumps(answer).encode())]
        prices = {"prompt": 10.0, "completion": 100.0}
        by = {"kind": "openai", "url": server.url("/v1"), "model": "tiny", "prices": prices}
        settings["rewards"] = {"mix": [{"kind": "judge", "template": "compare", "by": by}]}
        recipe.write_text(yaml.safe_dump(settings))
        directory = label(recipe)
        assert "| judge | 16 | 0 | 800 | 16 | 0.0096 |" in (directory / "labels/README.md").read_text()
        label(recipe, "labels.prompts=10")
        assert len(server.requests) == 24
    assert "| judge | 24 | 0 | 1,200 | 24 | 0.0144 |" in (directory / "labels/README.md").read_text()


def test_revisions_are_asked_again_where_a_principle_of_theirs_was_edited(recipe):
    settings = yaml.safe_load(recipe.read_text())
    settings |= {
        "environment": REVISED,
        "rewards": {"mix": [{"kind": "regex", "pattern": "."}], "max_failure_rate": 1.0},
    }
    settings["rollout"] |= {"max_new_tokens": 12, "stop_token_ids": list(range(6, 150))}  # a random model stops soon
    settings["labels"] = {"prompts": 12, "heldout": 4}
    recipe.write_text(yaml.safe_dump(settings))
    directory = label(recipe)
    before = said(directory)
    assert set.union(*(principles for principles, _ in before.values())) == set(PRINCIPLES)
    best = [json.loads(line) for file in (directory / "labels/best").iterdir() for line in file.open()]
    assert len(best) == sum(None in whole for _, whole in before.values()), "no unfinished conversation is a record"
    assert all(row["completion"] for row in best)

    edited = constitution() | {"version": 2}
    edited["principles"][1]["critique"] = "another one"  # kinder
    (recipe.parent / "ours.yaml").write_text(yaml.safe_dump(edited))
    label(recipe)
    draws = read(recipe.parent / "ours.yaml").principles
    concerned = [p for p in before if "kinder" in {draw(draws, f"{sample}/{p}", 0).id for sample in range(2)}]
    assert 0 < len(concerned) < 16
    assert asked(directory, "responses") == [16, len(concerned)]
