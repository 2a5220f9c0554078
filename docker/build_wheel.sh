#!/usr/bin/env bash
# Build the wheel of a source tree: build_wheel.sh SOURCE OUTPUT. Needs Python and a C++17 compiler, not torch.
set -euo pipefail
python3 -m pip wheel --quiet --no-deps --wheel-dir "$2" "$1"
