"""What a configuration costs before it is run: parameters, FLOPs, memory, bytes sent."""
