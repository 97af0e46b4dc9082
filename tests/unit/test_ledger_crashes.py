"""The ledger after its writer died: at every file operation, by a kill and by a loss of power, and at random moments.

What is asked of it stands in ledger_crashes.py, `checked`: no acknowledged group lost or changed, none twice, no prompt
skipped, and opening it again gives the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ledger_crashes.py")


def crashes(folder, *arguments):
    path = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["kill", "power"])
def test_it_may_die_before_any_file_operation(tmp_path, kind):
    assert crashes(tmp_path, "every-operation", kind)["lives"] > 100


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_it_may_be_killed_at_any_moment(tmp_path, seed):
    assert crashes(tmp_path, "random", seed)["lives"] == 8
