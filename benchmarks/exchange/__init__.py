"""Time one exchange of real gradients by every method, over links of known rate."""
