"""Experiments:
which rows a table has, running them, collecting their results, comparing with what was expected."""
