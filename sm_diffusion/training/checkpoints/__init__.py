"""Checkpoints of a run: what is in them, how ranks put them together, how they are written whole."""
