"""Soft-masked diffusion language models: training, sampling and evaluation."""

__version__ = "0.1.0"
