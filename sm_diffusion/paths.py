"""Where the checkout, its configuration and its experiments lie. Standard library only."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"
LAUNCHERS = CONF / "hydra" / "launcher"
