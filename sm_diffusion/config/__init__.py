"""Hydra: what is composed from the files in conf/ and the command line, and how mistakes are said."""
