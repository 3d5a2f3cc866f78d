# An image of the project with everything that it needs. A container runs `make reproduce`. Nobody has
# built this image yet: please report problems.
#
#   docker build -t toycircuits .
#   docker run --name toy toycircuits          # `make reproduce`; or name another command
#   docker cp toy:/home/toy/toycircuits/quick/reports .
#
# For a GPU, build with `--build-arg PIP_EXTRA_INDEX_URL=`, which installs the CUDA build of torch from PyPI,
# and run with `--gpus all`.
FROM python:3.11-slim-bookworm

# chromium draws the pictures, g++ compiles for `train.compile`, and the pipeline calls git.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes chromium g++ git make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 toy
USER 1000
WORKDIR /home/toy/toycircuits

# Copy first what `make setup` reads, so that other edits do not install everything again.
COPY --chown=1000:1000 LICENSE Makefile README.md constraints.txt pyproject.toml ./
COPY --chown=1000:1000 src/toycircuits/__init__.py src/toycircuits/
COPY --chown=1000:1000 src/dvc_parallel/__init__.py src/dvc_parallel/
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN PIP_NO_CACHE_DIR=1 make setup

# Copy the whole repository with .git: `--scale` asks git which files belong to the project.
COPY --chown=1000:1000 . .
CMD ["make", "reproduce"]
