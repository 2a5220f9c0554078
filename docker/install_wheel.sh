#!/usr/bin/env bash
# Install the wheel in a folder with what it needs: install_wheel.sh WHEELS LOCK [EXTRAS], such as mpi,log.
# TORCH_INDEX names an index of torch's own wheels, for CPU-only or another CUDA.
set -euo pipefail
wheels=("$1"/gsdist-*.whl)
extras=${3:+[$3]}
python3 -m pip install --quiet --no-cache-dir --constraint "$2" \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "${wheels[0]}$extras"
