#!/usr/bin/env bash
# Build the wheel and use it in an empty environment: no torch at build time, NumPy alone at run time.
# try_wheel.sh FOLDER: an empty folder, which keeps the wheel. With FULL=1 also by the images' script and doctor.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(cd "$1" && pwd)
python3 -m venv "$folder/bare"
export PATH=$folder/bare/bin:$PATH
"$root/docker/build_wheel.sh" "$root" "$folder/wheels"
pip install --quiet --no-deps "$folder"/wheels/gsdist-*.whl
pip install --quiet --constraint "$root/requirements/lock.txt" numpy
cd "$folder"
GSDIST_REQUIRE_EXT=1 python - <<'PY'
import numpy as np
from gsdist.sketch import CountSketch, SketchFormat

sketch = CountSketch(SketchFormat(rows=5, columns=1024, seed=1, dimension=10_000))
vector = np.zeros(10_000, np.float32)
vector[[17, 4711]] = 3.0, -5.0
sketch.encode(vector)
indices, estimates = sketch.heavy_hitters(2)
assert indices.tolist() == [17, 4711] and estimates.tolist() == [3.0, -5.0]
PY
gsdist --version
if [ "${FULL:-}" = 1 ]; then
    "$root/docker/install_wheel.sh" "$folder/wheels" "$root/requirements/lock.txt" mpi,log
    gsdist doctor
fi
