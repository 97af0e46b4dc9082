# rlpipe on NVIDIA GPUs (driver 580 or newer on the machine).
#
#   docker build -f cluster/docker/gpu.Dockerfile -t registry.example.com/rlpipe:gpu .
#
# Checked   tests/unit/test_cluster_files.py: what it copies is there, and versions are those of requirements/gpu.txt. What
#           it runs is `make setup`. NOT BUILT yet: no Docker where it was written.
#
# The toolkit's version is that of cuda-toolkit in requirements/gpu.txt; nvcc because DeepSpeed compiles its ops at first use.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ make openssh-client rsync wget \
       python3.12 python3.12-venv python3.12-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rlpipe
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY tools tools
COPY rlpipe rlpipe
COPY recipes recipes
RUN ROUTE=gpu PYTHON=python3.12 PIP_NO_CACHE_DIR=1 bash tools/setup.sh /opt/venv

ENV PATH=/opt/venv/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Ubuntu's image has a user 1000 already.
RUN userdel --remove ubuntu && useradd --create-home --uid 1000 rlpipe && mkdir /runs && chown rlpipe /runs
USER rlpipe
WORKDIR /home/rlpipe
CMD ["rlpipe", "doctor"]
