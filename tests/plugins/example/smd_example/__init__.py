"""A plug-in: components of another package, added through the entry point `sm_diffusion.plugins`."""

from smd_example import components  # noqa: F401  (importing it registers them)
