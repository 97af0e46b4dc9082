"""Studies whose cells are stand-ins (fake_cell.py): what runs, what is skipped, how a failure, a hang, Ctrl-C end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_cell
import pytest
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.pipelines.study import child, run
from rlpipe.pipelines.study.processes import family, peak_bytes

RECIPE = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards:
  mix:
    - kind: exact
algorithm: {name: grpo}
schedule: {steps: 4}
"""
STUDY = """\
name: s
recipe: r.yaml
grid:
  size:
    small: [algorithm.group_size=2]
    large: [algorithm.group_size=4]
  seed: [0, 2]
repeat_over: seed
"""
HEAD = (
    "cell,size,seed,recipe,steps,samples,step_seconds,seconds,peak_memory_gib,evaluation/accuracy,evaluation/failures"
)


COMMAND = run.command


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    Path("s.yaml").write_text(STUDY)
    package = str(Path(run.__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", package)

    monkeypatch.setattr(run, "command", fake_cell.command)


def study(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["study", "s.yaml", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def ran() -> list[str]:
    return Path("ran.txt").read_text().split() if Path("ran.txt").exists() else []


def rows(folder: str = "runs/s") -> list[list[str]]:
    return [line.split(",") for line in Path(folder, "results.csv").read_text().splitlines()]


def edit(old: str, new: str) -> None:
    text = Path("s.yaml").read_text()
    assert old in text
    Path("s.yaml").write_text(text.replace(old, new))


ALL = ["small_seed-0", "small_seed-2", "large_seed-0", "large_seed-2"]


def test_a_row_per_cell_and_a_second_call_runs_nothing(monkeypatch):
    monkeypatch.setattr(child, "SECONDS_PER_LOOK", 0.0)
    code, said = study("--parallel", "4")
    assert code == 0, said
    assert sorted(ran()) == sorted(ALL)
    found = rows()
    assert ",".join(found[0]) == HEAD
    by_cell = {row[0]: row for row in found[1:]}
    assert sorted(by_cell) == sorted(ALL)
    row = by_cell["small_seed-2"]
    assert row[1:3] == ["small", "2"]
    assert row[4:7] == ["4", "32", "2.5"]
    assert float(row[7]) > 0
    assert 0.001 < float(row[8]) < 1
    assert row[9:] == ["0.7", "0.0"]
    assert "s: 4 cells, 0 finished before, 4 to run in runs/s\n" in said
    assert "[1/4] small_seed-0 runs, log runs/s/cells/small_seed-0.log\n" in said
    assert " left\n" in said

    code, said = study()
    assert (code, len(ran())) == (0, 4)
    assert "s: 4 cells, 4 finished before, 0 to run in runs/s\n" in said


def test_the_tables():
    study("--parallel", "4")
    page = Path("runs/s/study.md").read_text()
    assert "| size | n | held-out accuracy | steps | samples seen | step time (s) | wall-clock time (s) |" in page
    assert "| small | 2 | 60.0% ± 14.1% | 4 ± 0 | 32 ± 0 | 2.50 ± 0.00 |" in page
    assert "4 of 4 cells finished." in page
    curves = Path("runs/s/curves.csv").read_text().splitlines()
    assert curves[0] == "cell,size,seed,step,samples,seconds,metric,value"
    assert len(curves) == 1 + 4 * (5 * 2 + 4 * 2)
    [line] = [line for line in curves if line.startswith("small_seed-2,small,2,4,32,") and "accuracy" in line]
    assert line.endswith(",evaluation/accuracy,0.7")
    assert "<svg" in Path("runs/s/study.svg").read_text()


def test_only_what_changed_runs_again_and_what_it_left_is_set_aside():
    study("--parallel", "4")
    edit("group_size=4", "group_size=8")
    code, said = study("--dry-run")
    assert code == 0
    assert "s: 4 cells in runs/s, 2 to run\n  finished   small_seed-0  rlpipe" in said
    assert "  changed    large_seed-2  rlpipe" in said
    before = {row[0]: row for row in rows()}
    code, said = study("--parallel", "4")
    assert (code, sorted(ran()[4:])) == (0, ["large_seed-0", "large_seed-2"])
    assert (
        "large_seed-0: its recipe has changed, so it runs again; what it left is in runs/s/set-aside/large_seed-0-1\n"
        in said
    )
    assert Path("runs/s/set-aside/large_seed-0-1/events.jsonl").is_file()
    after = {row[0]: row for row in rows()}
    assert len(rows()) == 5
    assert after["small_seed-0"] == before["small_seed-0"]
    assert after["large_seed-0"][3] != before["large_seed-0"][3]


def test_a_cell_without_a_row_starts_again():
    Path("runs/s/cells/small_seed-0").mkdir(parents=True)
    Path("runs/s/study.yaml").touch()
    code, said = study("--parallel", "4")
    assert code == 0
    assert (
        "small_seed-0: it was not finished, so it starts again; what it left is in runs/s/set-aside/small_seed-0-1\n"
        in said
    )


def test_a_failure_is_told_has_no_row_and_stops_no_other():
    edit("[0, 2]", "[13, 2]")
    code, said = study()
    assert code == 1
    assert "small_seed-13 FAILED after" in said
    assert ": exit code 3\n    | $ " in said
    assert "\n    | one\n    | two\n    | three\n" in said
    assert "failed: small_seed-13, large_seed-13; the same command tries them again\n" in said
    assert [row[0] for row in rows()[1:]] == ["small_seed-2", "large_seed-2"]
    assert "Not finished: small_seed-13, large_seed-13." in Path("runs/s/study.md").read_text()
    assert study()[0] == 1
    assert ran()[4:] == ["small_seed-13", "large_seed-13"]


def test_a_recipe_that_is_edited_meanwhile_gives_no_row(monkeypatch):
    fake = run.command

    def edited(plan, cell, folder):
        Path("r.yaml").write_text(RECIPE.replace("steps: 4", "steps: 5"))
        return fake(plan, cell, folder)

    monkeypatch.setattr(run, "command", edited)
    edit("[0, 2]", "[0]")
    code, said = study()
    assert code == 1
    assert "FAILED after" in said and "its recipe was changed while the study ran" in said
    assert not Path("runs/s/results.csv").exists()


def test_a_hung_cell_is_ended_with_its_children():
    edit("[0, 2]", "[15]")
    edit("repeat_over: seed", "silence: 2")
    edit("    large: [algorithm.group_size=4]\n", "")
    code, said = study()
    assert code == 1
    assert "small_seed-15 FAILED after" in said
    assert "hung: it said nothing for 2 s, and was ended" in said
    assert gone(children())


def test_ctrl_c_stops_the_cell_and_its_children_and_the_next_call_goes_on():
    edit("[0, 2]", "[0, 14]")
    process = in_background()
    wait_for(lambda: Path("sleeps.txt").exists())
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert ran() == ["small_seed-0", "small_seed-14"]
    assert "stopping what runs: small_seed-14\n" in said
    assert "stopped; 3 of 4 cells are left, and the same command goes on with them\n" in said
    assert "Traceback" not in said
    assert gone(children())
    assert [row[0] for row in rows()[1:]] == ["small_seed-0"]
    edit("[0, 14]", "[0, 2]")
    code, _ = study("--parallel", "4")
    assert (code, sorted(ran())) == (0, sorted(["small_seed-14", *ALL]))


def test_two_studies_do_not_share_a_folder():
    edit("[0, 2]", "[14]")
    process = in_background()
    wait_for(lambda: Path("sleeps.txt").exists())
    code, said = study()
    assert code == 2
    assert f"another `rlpipe study` (process {process.pid}), or a cell that one left behind" in said
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert gone(children())


def test_a_folder_of_something_else_is_left_alone():
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/model").touch()
    expected = "error: runs/s holds something that is no study, and stays; give another folder with --out DIR\n"
    for option in ([], ["--dry-run"], ["--report-only"]):
        assert study(*option) == (2, expected)
    assert study("--out", "else", "seed=1", "--parallel", "4")[0] == 0
    assert len(rows("else")) == 5


def test_a_study_over_a_half_line_that_a_kill_left():
    edit("[0, 2]", "[0]")
    study("--parallel", "4")
    file = Path("runs/s/results.csv")
    text = file.read_text()
    torn_cell = text.splitlines()[-1].partition(",")[0]
    file.write_text(text[:-9])
    code, _ = study()
    assert (code, ran()[2:]) == (0, [torn_cell])
    assert [len(row) for row in rows()] == [11, 11, 11]


def test_report_only_counts_what_is_there_and_runs_nothing():
    study("--parallel", "4")
    for name in ("study.md", "study.svg", "curves.csv"):
        Path("runs/s", name).unlink()
    edit("group_size=4", "group_size=8")
    code, said = study("--report-only")
    assert code == 0
    assert "not of the recipe as it is now" in said and "large_seed-0, large_seed-2\n" in said
    assert "| large | 2 | 60.0% ± 14.1%" in Path("runs/s/study.md").read_text()
    assert len(ran()) == 4


def test_a_metric_that_nothing_measured_is_told():
    edit("repeat_over: seed", "metrics: [evaluation/acuracy, reward]")
    edit("[0, 2]", "[0]")
    code, said = study()
    assert code == 0
    assert "warning: small_seed-0 measured no `evaluation/acuracy`; it measured evaluation/accuracy" in said
    assert rows()[0][-2:] == ["evaluation/acuracy", "reward"]
    assert rows()[1][-2:] == ["", "0.4"]


def test_mistakes_and_missing_files_stop_before_anything_runs():
    edit("group_size=2", "group_sise=2")
    code, said = study()
    assert code == 2
    assert said.startswith("error: s.yaml:5: algorithm.group_sise: ")
    edit("algorithm.group_sise=2", "model.path=runs/m")
    assert study()[0] == 2
    code, said = study("--dry-run")
    assert code == 0
    assert said.startswith("warning: s.yaml:5: model.path: no file or folder `runs/m`")
    assert ran() == []


def test_the_command_of_a_cell_works_by_hand():
    from rlpipe.recipe.study_file import read
    from rlpipe.recipe.study_plan import plan

    edit("repeat_over: seed", "debug: true")
    planned = plan(read("s.yaml"))
    recipe = Path("r.yaml").absolute()
    assert COMMAND(planned, planned.cells[1], Path("runs/s"))[1:] == (
        f"-m rlpipe run {recipe} algorithm.group_size=2 seed=2 --run-dir runs/s/cells/small_seed-2 --debug".split()
    )


def test_peak_memory_is_what_the_process_held():
    code = "import time; x = b'1' * (200 << 20); del x; print('done', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        process.stdout.readline()
        assert family(process.pid) == [process.pid]
        assert 200 << 20 < peak_bytes(family(process.pid)) < 260 << 20
    finally:
        process.kill()
        process.communicate()


def test_a_stubborn_cell_is_killed_after_its_grace():
    command = [sys.executable, fake_cell.__file__, "15", "nothing", "cell"]
    one = child.Child(command, Path("cell"), Path("cell.log"))
    wait_for(lambda: Path("sleeps.txt").exists())
    one.interrupt()
    one.wait(0.1)
    assert one.poll() is None
    one.kill()
    assert one.poll() == -signal.SIGKILL
    assert gone(children())


def in_background() -> subprocess.Popen:
    command = [sys.executable, fake_cell.__file__, "study", "s.yaml"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children() -> list[int]:
    return [int(pid) for pid in Path("children.txt").read_text().split()]


def gone(pids: list[int]) -> bool:
    wait_for(lambda: not any(alive(pid) for pid in pids))
    return True


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
