"""Feed the sketch deserialiser mutated and random bytes; it may refuse them, and do nothing else.

`python -m fuzz.serialisation --inputs 1000000 --seed 1`, or guided by coverage where atheris is installed:
`python -m fuzz.serialisation --atheris`. Checksums are often made right again, so that what lies behind them
is reached; what is accepted must survive the kernels.
"""

import argparse
import random
import struct
import sys
import time
import zlib
from collections import Counter

import numpy as np

from gsdist.errors import WireFormatError
from gsdist.sketch import CountSketch, SketchFormat
from gsdist.sketch.serialisation import HEADER_BYTES

_CHECKED = 40
"""Bytes before the checksum."""


def seeds() -> list[bytes]:
    """Return genuine sketches."""
    found = []
    for rows, columns, dimension in ((1, 64, 1), (3, 64, 1000), (5, 128, 2**40)):
        sketch = CountSketch(
            SketchFormat(rows=rows, columns=columns, seed=rows, dimension=dimension)
        )
        sketch.encode(np.linspace(-1, 1, min(dimension, 300), dtype=np.float32))
        found += [sketch.to_bytes(dtype) for dtype in ("float32", "float16", "bfloat16")]
    return found


def reseal(data: bytearray) -> None:
    """Make the checksum right."""
    if len(data) >= HEADER_BYTES:
        sealed = zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[:_CHECKED]))
        struct.pack_into("<II", data, _CHECKED, sealed, 0)


def mutate(data: bytes, choices: random.Random) -> bytes:
    """Change a few bytes or the length; half of the time with a right checksum."""
    changed = bytearray(data)
    for _ in range(choices.randrange(1, 4)):
        kind = choices.randrange(5)
        place = choices.randrange(min(len(changed), HEADER_BYTES) if kind < 2 else len(changed))
        if kind in (0, 2):
            changed[place] ^= 1 << choices.randrange(8)
        elif kind in (1, 3):
            changed[place] = choices.choice((0, 1, 0x7F, 0x80, 0xFF))
        else:
            length = choices.randrange(len(changed) + 100)
            changed = (changed + choices.randbytes(100))[: max(length, 1)]
    if choices.random() < 0.5:
        reseal(changed)
    return bytes(changed)


def consume(data: bytes) -> str:
    """Read bytes; return what became of them.

    Raises:
        Exception: anything but a refusal, which is a finding.
    """
    try:
        sketch = CountSketch.from_bytes(data)
    except WireFormatError:
        return "refused"
    assert np.isfinite(sketch.table).all()
    last = sketch.format.dimension - 1
    sketch.estimate(np.array([0, last], dtype=np.int64))
    if sketch.format.dimension <= 2**12:
        sketch.heavy_hitters(1)
    return "accepted"


def guided() -> None:
    """Run atheris until it is interrupted; does not return."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv[:1], lambda data: consume(data) and None)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args()
    if options.atheris:
        guided()
    choices, corpus, counts = random.Random(options.seed), seeds(), Counter()
    started = time.monotonic()
    for number in range(options.inputs):
        data = (
            choices.randbytes(choices.randrange(200))
            if number % 10 == 0
            else mutate(choices.choice(corpus), choices)
        )
        try:
            counts[consume(data)] += 1
        except Exception:
            print(f"seed {options.seed}, input {number}: {data.hex()}")
            raise
    print(
        f"{options.inputs} inputs, seed {options.seed}: {dict(counts)}, nothing else, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
