"""Study how the block size of the sketch's hash changes what is recovered from real gradients."""
