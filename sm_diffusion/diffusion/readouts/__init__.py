"""What is done with the last hidden states inside a forward pass:
losses, draws and summaries, a chunk of the vocabulary product at a time."""
