"""What is measured of a trained network, and results.json. Each evaluator gets a network and returns numbers."""
