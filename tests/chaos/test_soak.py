"""A short soak: two role processes and the driver of one run, at moments that a seed has chosen."""

import random

import pytest
import soak

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_a_run_that_is_struck_again_and_again_loses_nothing(tmp_path):
    subject = soak.Soak(tmp_path, ["schedule.steps=24"])
    for name, whom, count in (("roles", ("role",), 2), ("driver", ("driver",), 1)):
        faults, wrong = subject.disturbed(name, random.Random(3), count, whom)
        assert (wrong, len(faults)) == ("", count), "what is wrong, and whether every fault has fired"
        said = subject.log(name).read_text()
        mended = (
            said.count("A new process takes its place") + said.count("start again") + said.count("resuming from step")
        )
        assert mended >= count
