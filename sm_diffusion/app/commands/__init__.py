"""What single commands do with a model, a checkpoint or a corpus; the command lines themselves are in cli/."""
