"""Files of weights, ours and published ones, read without running anything they hold."""
