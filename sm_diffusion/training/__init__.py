"""How a loss becomes a trained network:
the Lightning modules, the optimiser, random streams.
What is measured afterwards belongs to `evaluation`."""
