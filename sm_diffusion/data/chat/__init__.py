"""Conversations: their format, sources, rows and batches."""
