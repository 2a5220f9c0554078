"""Feed arbitrary bytes to what reads bytes."""
