"""Networks that predict clean tokens. What is done with their prediction belongs to `diffusion`."""
