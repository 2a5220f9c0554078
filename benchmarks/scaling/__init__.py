"""Count what crosses the busiest link as the number of workers grows."""
