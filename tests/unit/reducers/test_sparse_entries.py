import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsdist.reducers.sparse_entries import Entries, pack_entries, sum_entries, unpack_entries

sparse_vectors = st.dictionaries(st.integers(0, 40), st.integers(-9, 9))


def entries_of(vector: dict[int, int]) -> Entries:
    indices = sorted(vector)
    values = torch.tensor([float(vector[i]) for i in indices], dtype=torch.float32)
    return torch.tensor(indices, dtype=torch.int64), values


@given(st.lists(sparse_vectors, min_size=1, max_size=5))
def test_sum_is_that_of_dense_vectors_on_the_union_of_supports(
    vectors: list[dict[int, int]],
) -> None:
    indices, values = sum_entries([entries_of(vector) for vector in vectors])
    assert indices.tolist() == sorted({i for vector in vectors for i in vector})
    dense = np.zeros(41)
    for vector in vectors:
        for i, value in vector.items():
            dense[i] += value
    assert values.tolist() == dense[indices.numpy()].tolist()


@given(sparse_vectors, st.sampled_from([100, 2**31, 2**31 + 1, 2**40]))
def test_packing_keeps_every_bit_in_8_or_12_bytes(vector: dict[int, int], size: int) -> None:
    indices, values = entries_of(vector)
    far = indices + size - 41 if size > 100 else indices
    buffer = pack_entries((far, values), size)
    assert buffer.nbytes == len(vector) * (8 if size <= 2**31 else 12)
    unpacked = unpack_entries(buffer, size)
    assert unpacked[0].tolist() == far.tolist() and unpacked[1].tolist() == values.tolist()
