#!/usr/bin/env bash
# Serve a model repository by the real Triton Inference Server, where docker is: tools/triton.sh REPOSITORY [PORT]
# gRPC on PORT (8001 by default), HTTP on PORT - 1, metrics on PORT + 1. Ctrl-C ends it.
set -euo pipefail

repository=$(realpath "${1:?the folder that recdistill export triton made}") port=${2:-8001}
image=${TRITON_IMAGE:-nvcr.io/nvidia/tritonserver:26.10-py3}
command -v docker >/dev/null || { echo "docker is needed" >&2; exit 2; }
gpus=()
command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && gpus=(--gpus all)
exec docker run --rm --init "${gpus[@]}" --publish "$port:8001" --publish "$((port - 1)):8000" --publish "$((port + 1)):8002" \
    --volume "$repository:/models:ro" "$image" tritonserver --model-repository=/models --strict-readiness=true
