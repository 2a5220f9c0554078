"""Time the sketch kernels against reading the vector, per-coordinate hashing and torch."""
