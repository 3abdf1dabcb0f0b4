"""Which rank a job of several processes hangs in, or died in."""
