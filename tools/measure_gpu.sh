#!/usr/bin/env bash
# Run what needs an NVIDIA GPU, in 12 minutes at most, what matters most first: build, tests, figures, checkers.
# measure_gpu.sh FOLDER: every part leaves a log there, benchmarks their JSON, summary.txt how each part ended.
# Needs gsdist's and its tests' dependencies, nvcc and CuPy; PYTHON names the interpreter. Nothing is downloaded.
set -uo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
seconds=720
export PYTHONPATH=$PWD CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1

# part NAME LIMIT COMMAND...: seconds that are not left are not given
part() {
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    if ((seconds - SECONDS < limit)); then limit=$((seconds - SECONDS)); fi
    if ((limit < 10)); then
        echo "$name: no time left" | tee -a "$folder/summary.txt"
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$folder/$name.log" 2>&1
    status=$?
    echo "$name: exit $status after $((SECONDS - begin)) s" | tee -a "$folder/summary.txt"
    tail -n 2 "$folder/$name.log"
}

small="nvcc and 1025 and not graph"
profiled="regex:gsdist_(encode_dense_float32|mask_cells|find_estimates)"

part build 180 "$python" setup.py build_ext --inplace
part test-sketch 150 "$python" -m pytest -q tests/gpu/test_sketch.py
part kernels 150 "$python" -m benchmarks.kernels --device cuda --json "$folder/kernels-gpu.json"
part test-reducers 120 "$python" -m pytest -q tests/gpu/test_reducers.py
part test-benchmarks 60 "$python" -m pytest -q tests/gpu/test_benchmarks.py
part simulated-link 150 "$python" -m benchmarks.simulated_link --device cuda --models gpt-25m \
    --bandwidths 10Gbit 100Gbit --rounds 5 --json "$folder/simulated-link-gpu.json"
part test-training 90 "$python" -m pytest -q tests/gpu/test_training.py tests/gpu/test_hybrid_shard.py
part memcheck 120 compute-sanitizer --tool memcheck --error-exitcode 1 \
    "$python" -m pytest -q tests/gpu/test_sketch.py -k "$small"
part racecheck 120 compute-sanitizer --tool racecheck --error-exitcode 1 \
    "$python" -m pytest -q tests/gpu/test_sketch.py -k "$small and reading"
# the first six launches are those that check the results
part ncu 90 ncu --set full -k "$profiled" --launch-skip 6 --launch-count 6 -f -o "$folder/kernels" \
    "$python" -m benchmarks.kernels --device cuda --quick --rounds 1
