"""Compare exchange methods by what a run learns for the bytes it sends, at up to 64 emulated workers."""
