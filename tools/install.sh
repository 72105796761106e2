#!/usr/bin/env bash
# Make (or extend) the environment: tools/install.sh VENV [EXTRAS]
# Linux without an NVIDIA driver gets PyTorch's CPU build, so that no CUDA libraries are pulled; a CUDA machine the default one.
# EXTRAS "tensorrt-any" takes the flavour that fits: `tensorrt` beside a GPU where NVIDIA's index is reachable, else RTX.
set -euo pipefail

venv=$1 extras=${2:-}
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
[ -t 2 ] || pip+=(--quiet) # a terminal sees pip's progress bars
torch_version=$(sed -nE 's/^ *"torch==([0-9.]+)".*/\1/p' pyproject.toml)
cpu_index=https://download.pytorch.org/whl/cpu

say() { echo "[install] $*" >&2; }
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }
has_torch() { "$venv/bin/python" -c "import torch" 2>/dev/null; }

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or later is needed"; exit 2; }

if ! has_torch; then
    if [ "$(uname -s)" = Linux ] && ! has_gpu; then
        say "PyTorch $torch_version, CPU build (no NVIDIA driver found)"
        "${pip[@]}" install --quiet "torch==$torch_version+cpu" 2>/dev/null \
            || "${pip[@]}" install "torch==$torch_version+cpu" --index-url "$cpu_index" --extra-index-url https://pypi.org/simple
    else
        say "PyTorch $torch_version"
        "${pip[@]}" install "torch==$torch_version"
    fi
fi

install() { "${pip[@]}" install --constraint constraints.txt --editable ".${1:+[$1]}"; }
if [ "$extras" = tensorrt-any ]; then
    if has_gpu && install tensorrt 2>/dev/null && "$venv/bin/python" -c "import tensorrt; tensorrt.Builder" 2>/dev/null; then
        say "TensorRT"
    else
        say "TensorRT-RTX (builds engines without a GPU)"
        install tensorrt-rtx
    fi
else
    say "dependencies${extras:+ and extras: $extras}"
    install "$extras"
fi
