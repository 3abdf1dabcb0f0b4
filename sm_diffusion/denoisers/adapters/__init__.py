"""Small trained additions to a frozen network: LoRA, DoRA and the omegas, and the folders that hold them."""
