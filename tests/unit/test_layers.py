"""Imports run downwards only, checked over the syntax trees of the whole package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlpipe

PACKAGE = Path(rlpipe.__file__).parent

TIERS = (
    {"recipe", "plan"},
    {"models", "data", "algorithms"},
    {"runtime", "observe", "ledger", "weights", "training", "rollout", "rewards"},
    {"pipelines"},
    {
        "cli",
        "cli_debug",
        "cli_eval",
        "cli_inspect",
        "cli_jobs",
        "cli_label",
        "cli_models",
        "cli_plan",
        "cli_runs",
        "cli_supervise",
        "terminal",
        "__main__",
    },
)
FLOOR = {room: floor for floor, rooms in enumerate(TIERS) for room in rooms}
HEAVY = {"torch", "ray", "transformers", "vllm", "deepspeed", "trl", "peft", "datasets", "accelerate"}


def imported_modules(node: ast.AST, package: list[str]) -> list[str]:
    """The dotted modules an import statement names; `package` is that of the file it stands in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    # `from rlpipe import cli` names a room, too
    return [f"{module}.{alias.name}" for alias in node.names] if module == "rlpipe" else [module]


def broken_rule(file: Path, module: str) -> str | None:
    """The rule that importing `module` breaks in `file`, a path below the package."""
    room = file.parts[0].removesuffix(".py")
    top, *rest = module.split(".")
    if top == "rlpipe" and rest:
        if rest[0] in FLOOR and FLOOR[rest[0]] > FLOOR.get(room, len(TIERS)):
            return f"{room} is below {rest[0]}"
        if room == "algorithms" and rest[0] in FLOOR and rest[0] != "algorithms":
            return "algorithms imports nothing else of ours"
    if room in ("recipe", "plan") and top in HEAVY:
        return f"{room} imports nothing heavy"
    if room == "algorithms" and top in HEAVY - {"torch"}:
        return "algorithms imports torch and nothing else heavy"
    if top == "ray" and room != "runtime" and not (room == "pipelines" and file.parts[1].startswith("offline")):
        return "only runtime and pipelines/offline import ray"
    return None


def violations(package: Path) -> Iterator[str]:
    """Every import against the rules, at any depth of a file."""
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in imported_modules(node, ["rlpipe", *file.parent.parts]):
                rule = broken_rule(file, module)
                if rule:
                    yield f"{file}:{node.lineno}: imports {module}, but {rule}"


def test_imports_run_downwards():
    assert list(violations(PACKAGE)) == []


def test_every_folder_has_its_tier():
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms <= set(FLOOR)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data/a.py", "from rlpipe.training import roles", "imports rlpipe.training, but data is below training"),
        ("data/a.py", "from rlpipe import cli", "imports rlpipe.cli, but data is below cli"),
        ("data/a.py", "from ..rollout import engine", "imports rlpipe.rollout, but data is below rollout"),
        ("recipe/a.py", "def f():\n    import torch.nn", "imports torch.nn, but recipe imports nothing heavy"),
        ("plan/a.py", "import deepspeed", "imports deepspeed, but plan imports nothing heavy"),
        (
            "algorithms/a.py",
            "from rlpipe.data.flow import Group",
            "imports rlpipe.data.flow, but algorithms imports nothing else of ours",
        ),
        ("weights/a.py", "import ray", "imports ray, but only runtime and pipelines/offline import ray"),
        ("pipelines/online/a.py", "import ray", "imports ray, but only runtime and pipelines/offline import ray"),
    ],
)
def test_the_check_notices(tmp_path, file, source, expected):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    line = source.count("\n") + 1
    assert list(violations(tmp_path)) == [f"{file}:{line}: {expected}"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("training/a.py", "from rlpipe.rewards import mix\nfrom rlpipe.recipe.model import Model\nimport torch"),
        ("algorithms/a.py", "import torch\nfrom rlpipe.algorithms.kl import k3"),
        ("runtime/a.py", "import ray"),
        ("pipelines/offline.py", "import ray.train"),
        ("pipelines/offline/sft.py", "import ray.train"),
        ("cli.py", "from rlpipe.pipelines.run import run"),
    ],
)
def test_the_check_allows(tmp_path, file, source):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    assert list(violations(tmp_path)) == []
