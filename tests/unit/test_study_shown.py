"""What a study keeps and shows: rows of results.csv, mean and spread, curves laid over each other, the drawing."""

import math
import os
import re
import xml.dom.minidom

import pytest

from rlpipe.data.storage import Storage
from rlpipe.observe.events import EventLog
from rlpipe.observe.study import chart, measures, results, table
from rlpipe.observe.study.chart import Reach
from rlpipe.observe.study.measures import Point
from rlpipe.observe.study.results import Results


def row(cell: str, **figures: str) -> dict[str, str]:
    return {"cell": cell, "recipe": f"of-{cell}"} | figures


class TestResults:
    def test_rows_are_appended(self, tmp_path):
        found = Results(tmp_path)
        found.put(row("a", reward="1"))
        inode = os.stat(tmp_path / "results.csv").st_ino
        found.put(row("b", reward="2"))
        assert (tmp_path / "results.csv").read_text() == "cell,recipe,reward\na,of-a,1\nb,of-b,2\n"
        assert os.stat(tmp_path / "results.csv").st_ino == inode
        again = Results(tmp_path)
        assert again.finished("a", "of-a")
        assert not again.finished("a", "of-b")
        assert not again.finished("c", "of-c")

    def test_each_row_is_one_write_that_is_on_disk_before_the_next(self, tmp_path, monkeypatch):
        found, synced = Results(tmp_path), []
        found.put(row("a"))
        monkeypatch.setattr(results.os, "fsync", lambda _: synced.append((tmp_path / "results.csv").read_text()))
        found.put(row("b"))
        assert synced == ["cell,recipe\na,of-a\nb,of-b\n"]

    @pytest.mark.parametrize("torn", ["b,of", "b,of-b,2", 'b,"of', "b"])
    def test_a_half_line_is_lost_alone(self, tmp_path, torn):
        (tmp_path / "results.csv").write_text("cell,recipe,reward\na,of-a,1\n" + torn)
        found = Results(tmp_path)
        assert found.torn
        assert list(found.rows) == ["a"]
        found.put(row("c", reward="3"))
        assert (tmp_path / "results.csv").read_text() == "cell,recipe,reward\na,of-a,1\nc,of-c,3\n"

    @pytest.mark.parametrize("text", ["", "cell,rec"])
    def test_a_file_without_a_whole_line_counts_for_nothing(self, tmp_path, text):
        (tmp_path / "results.csv").write_text(text)
        found = Results(tmp_path)
        assert found.rows == {}
        found.put(row("a"))
        assert (tmp_path / "results.csv").read_text() == "cell,recipe\na,of-a\n"

    def test_a_row_replaces_that_of_the_same_cell(self, tmp_path):
        found = Results(tmp_path)
        for cell, reward in (("a", "1"), ("b", "2"), ("a", "3")):
            found.put(row(cell, reward=reward))
        assert (tmp_path / "results.csv").read_text() == "cell,recipe,reward\na,of-a,3\nb,of-b,2\n"

    def test_new_columns_rewrite_the_file(self, tmp_path):
        found = Results(tmp_path)
        found.put(row("a", reward="1"))
        found.put(row("b", loss="2"))
        assert (tmp_path / "results.csv").read_text() == "cell,recipe,reward,loss\na,of-a,1,\nb,of-b,,2\n"


class TestTable:
    def test_mean_and_sample_deviation(self):
        # mean 4; the squares of -3, -1, 2, 0, 2 add up to 18, divided by n - 1 = 4
        assert table.spread([1.0, 3.0, 6.0, 4.0, 6.0]) == pytest.approx((4.0, 4.5**0.5, 5))
        assert table.spread([0.6, 0.7, 0.8]) == pytest.approx((0.7, 0.1, 3))
        assert table.spread([2.0]) == (2.0, None, 1)
        assert math.isnan(table.spread([1.0, math.nan]).mean)

    def test_markdown(self):
        rows = [
            {"cell": c, "kind": k, "seed": s, "recipe": "r", "steps": "4", "evaluation/accuracy": a, "failures": "0.0"}
            for c, k, s, a in (("a0", "a", "0", "0.6"), ("a1", "a", "1", "0.8"), ("b0", "b|c", "0", "0.5"))
        ]
        assert table.markdown(rows, ["kind", "seed"], ["kind"]).splitlines() == [
            "| kind | n | held-out accuracy | steps |",
            "| --- | --: | --: | --: |",
            "| a | 2 | 70.0% ± 14.1% | 4 ± 0 |",
            "| b\\|c | 1 | 50.0% | 4 |",
        ]

    def test_a_metric_that_some_rows_lack(self):
        assert table.text([{"x": "1"}, {"x": ""}, {}], "x") == "1"
        assert table.text([{"x": ""}], "x") == ""

    def test_headings(self):
        assert table.heading("evaluation/reward") == "held-out reward"
        assert table.heading("evaluation/failures") == "failed held-out rewards"
        assert table.heading("evaluation/pass@4") == "held-out pass@4"
        assert table.heading("heldout_loss") == "held-out loss (nats/token)"
        assert table.heading("peak_memory_gib") == "peak memory (GiB)"


def point(step: int, samples: int, value: float) -> Point:
    return Point(step, samples, 0.0, "reward", value)


class TestCurves:
    def test_repeats_meet_at_the_steps_that_all_have(self):
        first = [point(0, 0, 0.1), point(1, 8, 0.3), point(2, 16, 0.9)]
        second = [point(0, 0, 0.3), point(1, 12, 0.5)]
        assert chart.band([first, second]) == [
            pytest.approx(Reach(0.0, 0.2, 0.1, 0.3)),
            pytest.approx(Reach(10.0, 0.4, 0.3, 0.5)),
        ]
        assert chart.band([]) == []

    def test_of_an_sft_stage(self, tmp_path):
        log = EventLog(Storage(tmp_path))
        train = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "ranks": 3}
        log.emit("run_started", task="sft", steps=3, recipe={"train": train})
        log.metrics(0, {"heldout_loss": 5.0})
        for step in (10, 20):
            log.metrics(step, {"loss": 1.0 / step})
        log.metrics(20, {"heldout_loss": 2.0})
        log.close()
        lines = (tmp_path / "events.jsonl").read_text().splitlines()
        times = (100.0, 100.5, 101.0, 103.0, 104.0)
        texts = [re.sub(r'"time": [\d.]+', f'"time": {t}', line) for t, line in zip(times, lines, strict=True)]
        (tmp_path / "events.jsonl").write_text("\n".join(texts) + "\n")
        found = measures.curves(tmp_path)
        assert found[-1] == Point(20, 480, 4.0, "heldout_loss", 2.0)
        assert measures.figures(found) == {
            "steps": 20,
            "samples": 480,
            "heldout_loss": 2.0,
            "loss": 0.05,
            "step_seconds": 0.2,
        }

    def test_of_a_pipeline_the_last_stage(self, tmp_path):
        for stage in ("z", "a"):
            log = EventLog(Storage(tmp_path / "stages" / stage))
            log.emit("run_started", task="rl", steps=1, recipe={})
            log.evaluation(0, {"accuracy": 0.1 if stage == "z" else 0.2}, [])
            log.close()
        file = tmp_path / "stages" / "z" / "events.jsonl"
        file.write_text(re.sub(r'"time": [\d.]+', '"time": 1.0', file.read_text()))
        assert [p.value for p in measures.curves(tmp_path)] == [0.2]

    def test_of_nothing(self, tmp_path):
        assert measures.curves(tmp_path) == []
        assert measures.figures([]) == {}

    def test_within_a_budget_the_figures_are_those_of_its_last_step(self):
        found = [Point(step, step * 100, float(step), "loss", 1.0 / step) for step in (1, 2, 3)]
        assert measures.figures(found, 250) == {"steps": 2, "samples": 200, "loss": 0.5, "step_seconds": 1.0}
        assert measures.figures(found, 300) == measures.figures(found)
        assert measures.figures(found, 99) == {}


class TestDrawing:
    def lines(self, count: int) -> dict[str, list[Reach]]:
        return {f"line <{i}>": [Reach(s * 64.0, 0.1 * i, 0.0, 1.0) for s in range(4)] for i in range(count)}

    @pytest.mark.parametrize("count", [1, 3, 4, 9])
    def test_it_is_a_whole_drawing(self, count):
        svg = chart.draw(self.lines(count), "Held-out accuracy", "{:.0%}".format, "samples seen")
        drawing = xml.dom.minidom.parseString(svg)
        texts = [node.firstChild.data for node in drawing.getElementsByTagName("text")]
        assert {"Held-out accuracy", "samples seen", "line <0>  0%"} <= set(texts)
        small = count if count > 3 else 0
        assert len(drawing.getElementsByTagName("polygon")) == count
        assert len(drawing.getElementsByTagName("polyline")) == count + small * count
        assert texts.count("line <0>") == (1 if small else 0)

    def test_lines_differ_without_colour(self):
        looks = {(i % len(chart.DASHES), i % len(chart.MARKS)) for i in range(16)}
        assert len(looks) == 16

    def test_of_one_point(self):
        assert "<polyline" in chart.draw({"a": [Reach(0.0, 1.0, 1.0, 1.0)]}, "x", str, "samples")
