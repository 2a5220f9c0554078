"""Where the sources of randomness stand can be saved and put back."""

import random

import numpy as np
import torch

from gsdist.training import randomness


def draw(generator: torch.Generator) -> tuple[float, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.standard_normal()),  # one of a pair; the other waits in the state
        float(torch.rand(())),
        float(torch.rand((), generator=generator)),
    )


def test_restored_sources_repeat_what_they_drew() -> None:
    generator = randomness.generator_for(3, 1)
    randomness.seed_everything(3)
    draw(generator)
    state = randomness.capture(generator)
    drawn = [draw(generator) for _ in range(3)]
    randomness.seed_everything(99)
    generator.manual_seed(99)
    randomness.restore(state, generator)
    assert [draw(generator) for _ in range(3)] == drawn


def test_numbers_that_differ_in_any_part_give_other_streams() -> None:
    drawn = {
        parts: float(torch.rand((), generator=randomness.generator_for(*parts)))
        for parts in [(0, 0), (0, 1), (1, 0), (1, 1), (2**32 - 1, 0), (1, 2, 3)]
    }
    assert len(set(drawn.values())) == len(drawn)


def test_seeding_moves_every_source() -> None:
    first = []
    for seed in (1, 2):
        randomness.seed_everything(seed)
        first.append(draw(randomness.generator_for(seed)))
    assert all(one != other for one, other in zip(*first, strict=True))
