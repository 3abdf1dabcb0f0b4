"""What happens beside a training step: averaging, validation, logging, progress, profiling, saving at the end."""
