"""From text to batches of token ids. Nothing here knows a network."""
