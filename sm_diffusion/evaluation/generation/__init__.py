"""Texts a model makes, and what a judge, MAUVE and statistics say of them."""
