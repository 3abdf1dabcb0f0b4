"""Runs programs a model wrote, confined. The files that run inside are standard library only."""
