"""The mathematics of masked diffusion and soft-masking:
schedules, masking, losses, what is fed back.
No network, no file, no configuration."""
