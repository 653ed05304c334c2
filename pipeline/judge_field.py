"""The judge's view of a deformation: its size, its folds, and whether it really makes the image it came with."""

from __future__ import annotations

from torch import Tensor

from pipeline.deform import deformation_size, folded_share, max_gradient, warp

TOLERANCE = 1e-4  # largest difference of a pixel between adv_inputs and the field applied again


def examine(inputs: Tensor, adv_inputs: Tensor, deformation: Tensor) -> dict[str, Tensor]:
    """Columns ``size_deformation``, ``folded_share``, ``max_gradient``, and ``honest`` (bool), each (B,).

    Args:
        inputs, adv_inputs: (B, C, H, W).
        deformation: (B, H, W, 2), pixels.
    """
    difference = (warp(inputs, deformation) - adv_inputs).abs().flatten(1).amax(1)
    return {
        "size_deformation": deformation_size(deformation.double()),
        "folded_share": folded_share(deformation),
        "max_gradient": max_gradient(deformation),
        "honest": difference <= TOLERANCE,
    }
