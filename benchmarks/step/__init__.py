"""Time full training steps under DistributedDataParallel, over links of known rate."""
