"""Slow plain twins of samplers, which tests and benchmarks compare with. Nothing else imports them."""
