"""The model class that lm-evaluation-harness runs, and its settings."""
