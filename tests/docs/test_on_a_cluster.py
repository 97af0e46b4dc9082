"""The commands of docs/submit.md and docs/cluster.md against a real head, to the letter: it is called `head`, has Ray's
own ports, and asks for the token that `ray get-auth-token` has put where it belongs. Only what would train for long is
shrunk, by overrides that are appended, and `/shared` is a folder of the test."""

import importlib.util
import os
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path

import elsewhere
import pytest
import shrink
from code_blocks import blocks, commands

from rlpipe.recipe.load import load

ROOT = Path(__file__).parents[2]
START = "ray start --head --metrics-export-port=8080"
SMALL_HEAD = "--num-cpus=4 --object-store-memory=100000000 --disable-usage-stats > head.log 2>&1"
S3 = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:5555",
    "AWS_ACCESS_KEY_ID": "of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}
HAS_S3 = importlib.util.find_spec("moto") is not None and importlib.util.find_spec("s3fs") is not None
"""Without them (`pip install 'rlpipe[dev]'`) all else on the pages is run."""
BUCKET = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.soak,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(elsewhere.missing()), reason=elsewhere.missing()),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory, local):
    """With the head of docs/cluster.md, a store for s3://bucket and nothing in the environment that Ray looks for."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "my.yaml").write_text("extends: arithmetic/grpo\n")
    (folder / "shared").mkdir()
    (folder / "runs/arithmetic-sft").mkdir(parents=True)
    (folder / "runs/arithmetic-sft/model").symlink_to(
        local / "FOLDER"
    )  # of `rlpipe run arithmetic/sft`, which pages name
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    code = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:  # a socket's path is short
        own = {"HOME": str(folder), "PATH": path, "PYTHONPATH": code, "RAY_TMPDIR": scratch, "COLUMNS": "200"}
        quiet = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        with elsewhere.Elsewhere(folder, "head", outside | own | quiet | S3) as there:
            if HAS_S3:
                there.start("exec python -m moto.server -H 127.0.0.1 -p 5555 > s3.log 2>&1")
                until_done(there, f"python -c {shlex.quote(BUCKET)}")
            assert done(there, "ray get-auth-token --generate")
            done(there, f"{written('cluster.md', START)} {SMALL_HEAD}")
            assert "Token authentication is enabled" in (folder / "head.log").read_text()
            yield there


def written(page: str, begins: str) -> str:
    """A line of the page, as it stands there."""
    found = [line for block in blocks(ROOT / "docs" / page) for line in block.text.splitlines()]
    [line] = {line for line in found if line.startswith(begins)}
    return line


def done(machine: elsewhere.Elsewhere, text: str) -> str:
    code, output = machine.do(text)
    assert code == 0, f"{text}: {code}\n{output}"
    return output


def until_done(machine: elsewhere.Elsewhere, text: str, seconds: float = 240.0) -> str:
    ends = time.monotonic() + seconds
    while (found := machine.do(text))[0] != 0:
        assert time.monotonic() < ends, f"{text}: {found}"
        time.sleep(0.5)
    return found[1]


def asked(text: str, local: Path, folder: Path) -> str:
    """The command, with what makes its run small, and the test's `/shared`."""
    words = shlex.split(text.replace("/shared/", f"{folder}/shared/"))
    if words[1] in ("submit", "run", "supervise"):
        name = "arithmetic/grpo"  # which my.yaml is, too
        words += shrink.shrunk(load(name), local)
    return shlex.join(words)


def test_the_page_on_submitting(machine, local):
    folder, said = machine.folder, {}
    for block in blocks(ROOT / "docs/submit.md"):
        for text in [each.text for each in commands(block)] if block.language == "bash" else []:
            if "s3://" in text and not HAS_S3:
                continue
            said[text] = done(machine, asked(text, local, folder))
            if "sums --resume" in text and "submit" in text:  # the next one goes on in the same run directory
                [job] = re.findall(r"^job +(\S+)", said[text], re.MULTILINE)
                done(machine, f"rlpipe attach {job} --address http://head:8265")
    at = "--address http://head:8265"
    assert re.search(r"^sums +SUCCEEDED", said[f"rlpipe jobs {at}"], re.MULTILINE)
    assert re.search(f"^step +{shrink.STEPS}/{shrink.STEPS}$", said[f"rlpipe status sums {at}"], re.MULTILINE)
    for follows in ("logs", "attach"):
        assert f"step {shrink.STEPS}/{shrink.STEPS}" in said[f"rlpipe {follows} sums {at}"]
    for name in ("sums", "nightly"):
        assert (folder / f"shared/runs/{name}/model/config.json").is_file()
    done(machine, f"rlpipe resume {folder}/shared/runs/sums")
    until_done(machine, f"rlpipe jobs {at} | tee jobs.txt | (! grep -E 'RUNNING|PENDING')")
    jobs = (folder / "jobs.txt").read_text()
    assert jobs.count("SUCCEEDED") == len(jobs.strip().splitlines()) == 3 + HAS_S3, jobs
    there = "import s3fs; assert s3fs.S3FileSystem().exists('bucket/runs/sums/model/config.json')"
    if HAS_S3:
        done(machine, f"python -c {shlex.quote(there)}")


def test_a_run_joins_the_head_and_is_seen_in_its_metrics(machine, local):
    """`auto` and the address that `ray start` prints: Ray itself sends its token to the first alone."""
    joins, scrapes = written("cluster.md", "RAY_ADDRESS=auto"), written("cluster.md", "curl -s")
    small = shlex.join([*shrink.shrunk(load("arithmetic/grpo"), local), "schedule.steps=40"])
    running = machine.start(f"{joins} {small} --run-dir auto")
    assert "ray_rlpipe_step" in until_done(machine, f"{scrapes} | grep ray_rlpipe_step")
    output, _ = running.communicate(timeout=300)
    assert running.returncode == 0 and "step 40/40" in output, output
    named = joins.replace("auto", "127.0.0.1:6379")
    assert "preflight, 1 node: " in done(machine, f"{named} {small} schedule.steps=1 --run-dir named")
    code, said = machine.do(f"RAY_AUTH_TOKEN=another-one-that-is-long-enough {named} {small} --run-dir other")
    assert code == 1 and "127.0.0.1:6379 does not take the token that was sent" in said and "Traceback" not in said
