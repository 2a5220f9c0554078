#!/usr/bin/env bash
# Build the C++ kernels and their fuzz harness under address and undefined-behaviour sanitizers and run it.
# With clang by libFuzzer, else by g++ with random inputs. Usage: fuzz/native.sh [inputs] [seed]
set -euo pipefail
cd "$(dirname "$0")/.."
inputs=${1:-100000} seed=${2:-1}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

flags=(-std=c++17 -O1 -g -ffp-contract=off -fno-omit-frame-pointer -fno-sanitize-recover=all -pthread)
sanitizers=address,undefined
if command -v clang++ >/dev/null; then
    compiler=clang++ sanitizers+=,fuzzer run=(-runs="$inputs" -seed="$seed")
else
    compiler=g++ run=("$inputs" "$seed")
    flags+=(-DGSDIST_STANDALONE)
fi
flags+=("-fsanitize=$sanitizers")

declare -A levels=([portable]="")
if [ "$(uname -m)" = x86_64 ]; then
    flags+=(-DGSDIST_X86=1)
    levels[avx2]="-mavx2"
    levels[avx512]="-mavx512f -mavx512bw -mavx512dq -mavx512vl"
fi
for level in "${!levels[@]}"; do
    # shellcheck disable=SC2086
    "$compiler" "${flags[@]}" ${levels[$level]} -DGSDIST_LEVEL="$level" -c csrc/kernels.cpp -o "$build/$level.o"
done
"$compiler" "${flags[@]}" csrc/dispatch.cpp csrc/select.cpp csrc/sketch.cpp fuzz/native.cpp "$build"/*.o -o "$build/native"
"$build/native" "${run[@]}"
