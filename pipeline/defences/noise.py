"""Gaussian noise on training images. Not a component: defences add it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.attacks.base import ExampleRng
from pipeline.fields import PositiveFloat, UnitFloat


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Parameters.

    Attributes:
        std: standard deviation of the noise, in [0, 1] units of pixel values; of several, each image gets one.
        share: of the images that get it.
    """

    std: PositiveFloat | tuple[PositiveFloat, ...]
    share: UnitFloat

    def __post_init__(self) -> None:
        if self.std == ():
            raise ValueError("std: is empty; name at least one")


def noisy(inputs: Tensor, config: Noise, rng: ExampleRng) -> Tensor:
    """The images, a share of them with noise, in [0, 1]."""
    chosen = rng.uniform((1, 1, 1), like=inputs) < config.share
    noise = _std(config, rng, inputs) * rng.normal(inputs.shape[1:], like=inputs)
    return (inputs + noise * chosen).clamp(0, 1)


def _std(config: Noise, rng: ExampleRng, inputs: Tensor) -> Tensor | float:
    """Each image's standard deviation, (B, 1, 1, 1), or everybody's."""
    if isinstance(config.std, float):
        return config.std
    drawn = (rng.uniform((1, 1, 1), like=inputs) * len(config.std)).long().clamp_max(len(config.std) - 1)
    return inputs.new_tensor(config.std)[drawn]
