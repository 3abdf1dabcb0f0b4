"""What the settings of a network are: the one place that says what a component of the group `model` offers.

    @register("model", "mine")
    @dataclass
    class MySettings:
        width: int = 64

        def build(self, *, vocab_size: int, mask_id: int) -> Denoiser: ...

That is enough to be trained, saved, opened and sampled. Beside `build` settings may have

    problems(self) -> Iterator[str]     what is wrong with them (see `registry`)
    time_conditioning: bool             the network is told its noise level (`TimeConditioned`)
    takes_adapters: ClassVar[bool]      peft's adapters can be put into it (`Adaptable`)
    takes_packed_rows: ClassVar[bool]   its attention mask may hold segments (`Packable`)
    name: str                           for people and tables; without it the registered name (`Named`)

and nobody asks of which class they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.registry import MISSING, name_of


@runtime_checkable
class ModelSettings(Protocol):
    """Settings of a network."""

    def build(self, *, vocab_size: int, mask_id: int) -> Denoiser:
        """The network, freshly initialised or with its published weights, on the CPU.

        Args:
            vocab_size: V of the tokenizer, the mask included.
            mask_id: the tokenizer's mask token, in [0, V).

        Raises:
            UserError: the weights cannot be had, or belong to another tokenizer.
        """


@dataclass
class NetworkSettings:
    """Settings that the built-in networks share."""

    name: str = MISSING  # for people and tables
    attention: Literal["auto", "sdpa", "flash"] = "auto"  # flash needs flash-attn and CUDA
    activation_checkpointing: bool = False  # recompute every block in the backward pass


@runtime_checkable
class TimeConditioned(Protocol):
    time_conditioning: bool


@runtime_checkable
class Adaptable(Protocol):
    takes_adapters: ClassVar[bool]


@runtime_checkable
class Packable(Protocol):
    takes_packed_rows: ClassVar[bool]


@runtime_checkable
class Named(Protocol):
    name: str


def is_told_time(settings: ModelSettings) -> bool:
    """Whether the network is told its noise level."""
    return isinstance(settings, TimeConditioned) and settings.time_conditioning


def takes_adapters(settings: ModelSettings) -> bool:
    """Whether peft's adapters can be put into the network."""
    return isinstance(settings, Adaptable) and settings.takes_adapters


def takes_packed_rows(settings: ModelSettings) -> bool:
    """Whether several sequences may share a row unseen by each other."""
    return isinstance(settings, Packable) and settings.takes_packed_rows


def label(settings: ModelSettings) -> str:
    """What messages call the network."""
    return settings.name if isinstance(settings, Named) else name_of("model", type(settings))
