"""The programs behind train.py, eval.py and the commands: from a configuration to files on disk."""
