"""How a run ends on the screen."""

import pytest

from rlpipe.data.records import DataError
from rlpipe.data.storage import Storage
from rlpipe.models.load import ModelError
from rlpipe.observe import events
from rlpipe.pipelines import run as running
from rlpipe.recipe.load import load


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "quiet", lambda: None)  # it changes logging for the whole process
    return load("arithmetic/sft")


def ended(monkeypatch, tmp_path, recipe, error: Exception) -> int:
    def fails(stage):
        raise error

    monkeypatch.setattr(running, "_start", fails)
    return running.run(recipe, tmp_path / "run", debug=True)


def test_what_a_run_failed_of_is_told_once_and_last(recipe, tmp_path, monkeypatch, capsys):
    assert ended(monkeypatch, tmp_path, recipe, DataError("no records in data.path")) == running.FAILED
    said = capsys.readouterr().out
    assert said.count("no records in data.path") == 1
    assert said.splitlines()[-1] == "rlpipe: no records in data.path"


def test_it_is_told_even_if_the_report_cannot_be_written(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running.report, "write", lambda run_dir: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ended(monkeypatch, tmp_path, recipe, DataError("no records in data.path"))
    assert capsys.readouterr().out.splitlines()[-1] == "rlpipe: no records in data.path"


def test_what_is_finished_is_not_run_again_and_the_rest_is(tmp_path, monkeypatch, recipe):
    pipeline, started = load("arithmetic/pipeline"), []

    def start(stage):
        started.append(stage.directory.name)
        if len(started) == 2:
            raise DataError("no records")
        stage.result.mkdir()

    monkeypatch.setattr(running, "_start", start)
    assert running.run(pipeline, tmp_path / "run", debug=True) == running.FAILED
    assert running.run(pipeline, tmp_path / "run", debug=True) == running.DONE
    assert running.run(pipeline, tmp_path / "run", debug=True) == running.DONE
    assert started == ["sft", "grpo", "grpo"]
    kinds = [event["kind"] for event in read(tmp_path / "run/stages/grpo")]
    assert kinds == ["run_started", "fault", "run_finished", "run_started", "run_finished"]


def test_a_pipeline_is_done_though_its_models_cannot_be_compared(tmp_path, monkeypatch, recipe, capsys):
    def compared(recipe, stages):
        raise ModelError("FOLDER has no tokenizer")

    monkeypatch.setattr(running, "_start", lambda stage: stage.result.mkdir())
    monkeypatch.setattr(running.afterwards, "comparison_of", compared)
    assert running.run(load("arithmetic/pipeline"), tmp_path / "run", debug=True) == running.DONE
    said = capsys.readouterr().err
    assert "their models could not be compared at the end: FOLDER has no tokenizer" in said
    assert "compare=false leaves it out" in said


def read(directory):
    return events.read(Storage(directory))[0]
