"""Searches over settings: Optuna trials, sweeps of Weights & Biases."""
