from typing import Any

def build_info() -> dict[str, Any]: ...
def use_simd_level(name: str) -> None: ...
def encode_dense(
    table: int,
    rows: int,
    columns: int,
    seed: int,
    values: int,
    offset: int,
    count: int,
    threads: int,
) -> None: ...
def encode_sparse(
    table: int,
    rows: int,
    columns: int,
    seed: int,
    indices: int,
    values: int,
    count: int,
    threads: int,
) -> None: ...
def estimate(
    table: int, rows: int, columns: int, seed: int, indices: int, out: int, count: int, threads: int
) -> None: ...
def heavy_hitters(
    table: int,
    rows: int,
    columns: int,
    seed: int,
    dimension: int,
    k: int,
    out_indices: int,
    threads: int,
) -> None: ...
def top_k(values: int, count: int, k: int, out_indices: int, threads: int) -> None: ...
def compensate(
    out: int,
    residual: int,
    momentum: int,
    gradient: int,
    scale: float,
    momentum_factor: float,
    nesterov: bool,
    count: int,
    threads: int,
) -> bool: ...
