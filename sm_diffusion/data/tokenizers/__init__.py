"""Text to ids and back, and the special tokens."""
