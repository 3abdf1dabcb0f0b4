"""The diffusion transformer of MDLM: its blocks and the network."""
