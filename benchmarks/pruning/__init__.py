"""Compare pruning methods: accuracy, size and speed of the small networks that are left."""
