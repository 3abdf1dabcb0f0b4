"""What Hydra and OmegaConf say over several lines, as one."""

from __future__ import annotations

# Lines of Hydra's and OmegaConf's reports that tell a user nothing.
_NOISE = ("object_type=", "reference_type=", "See https://", "To append to your config", "schema_", "You may also")


def one_line(error: BaseException) -> str:
    """What Hydra and OmegaConf say over several lines, as one: the cause, the full key, the value."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip().rstrip(".;") for line in [*str(error).splitlines(), *str(cause).splitlines()]]
    kept: list[str] = []
    for line in dict.fromkeys(lines):
        if line.startswith("Config search path"):
            break
        if line and not line.startswith(_NOISE):
            kept.append(line)
    text = "; ".join(kept).replace("':; ", "': ")
    if "Key '" in text:
        text += "; list the known keys with: smd config"
    if "missing EQUAL" in text:
        text += "; write key=value"
    return text
