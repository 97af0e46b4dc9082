# rlpipe on CPUs: for submitters, and clusters without GPUs.
#
#   docker build -f cluster/docker/cpu.Dockerfile -t registry.example.com/rlpipe:cpu .
#
# Checked   tests/unit/test_cluster_files.py: what it copies is there, and versions are those of requirements/cpu.txt. What
#           it runs is `make setup`. NOT BUILT yet: no Docker where it was written.
FROM python:3.11-slim-bookworm

# g++: DeepSpeed compiles against the C headers. bubblewrap: code rewards. wget: KubeRay's probes. rsync, ssh: `ray up`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ make openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rlpipe
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY tools tools
COPY rlpipe rlpipe
COPY recipes recipes
RUN ROUTE=cpu PYTHON=python3.11 PIP_NO_CACHE_DIR=1 bash tools/setup.sh /opt/venv

ENV PATH=/opt/venv/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 DS_ACCELERATOR=cpu
RUN useradd --create-home --uid 1000 rlpipe && mkdir /runs && chown rlpipe /runs
USER rlpipe
WORKDIR /home/rlpipe
CMD ["rlpipe", "doctor"]
