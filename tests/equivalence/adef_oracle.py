"""ADef as FIELD and paper state it (Alaifari, Alberti, Gauksson 2019): one image, float64, NumPy, nothing clever.

Written from the text as an oracle for ``pipeline.attacks.adef``, with which it shares no code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

Array = NDArray[np.float64]


@dataclass
class Result:
    """tau: (H, W, 2) in pixels, columns before rows; image: (C, H, W)."""

    tau: Array
    image: Array
    iterations: int


def deform(x: Array, tau: Array) -> Array:
    """x(u + τ(u)) by bilinear interpolation; outside, the nearest border pixel."""
    height, width = tau.shape[:2]
    y = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            column = min(max(j + tau[i, j, 0], 0.0), width - 1.0)
            row = min(max(i + tau[i, j, 1], 0.0), height - 1.0)
            left, top = min(int(column), width - 2), min(int(row), height - 2)
            a, b = column - left, row - top
            y[:, i, j] = (1 - b) * ((1 - a) * x[:, top, left] + a * x[:, top, left + 1]) + b * (
                (1 - a) * x[:, top + 1, left] + a * x[:, top + 1, left + 1]
            )
    return y


def derivatives(y: Array) -> tuple[Array, Array]:
    """∂y/∂x along columns and ∂y/∂y along rows: central differences, one-sided at the border."""
    dx, dy = np.empty_like(y), np.empty_like(y)
    dx[:, :, 1:-1] = (y[:, :, 2:] - y[:, :, :-2]) / 2
    dx[:, :, 0], dx[:, :, -1] = y[:, :, 1] - y[:, :, 0], y[:, :, -1] - y[:, :, -2]
    dy[:, 1:-1] = (y[:, 2:] - y[:, :-2]) / 2
    dy[:, 0], dy[:, -1] = y[:, 1] - y[:, 0], y[:, -1] - y[:, -2]
    return dx, dy


def size(tau: Array) -> float:
    return float(np.sqrt((tau**2).sum(-1)).max())


def logits_of(model: nn.Module, y: Array) -> Array:
    with torch.no_grad():
        values: Array = model(torch.from_numpy(y)[None])[0].numpy()
    return values


def logit_gradient(model: nn.Module, y: Array, k: int) -> Array:
    image = torch.from_numpy(y)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(model(image)[0, k], image)
    values: Array = gradient[0].numpy()
    return values


def smoothed(alpha: Array, sigma: float) -> Array:
    if sigma == 0:
        return alpha
    return np.stack([gaussian_filter(alpha[..., c], sigma, mode="constant", truncate=4) for c in (0, 1)], axis=-1)


def adef(
    model: nn.Module,
    x: Array,
    *,
    candidates: int,
    sigma: float,
    max_iter: int,
    max_norm: float = math.inf,
    overshoot: float,
    target: int | None = None,
) -> Result:
    """Steps 1 to 8 for a float64 model in eval mode and an image (C, H, W) that it classifies correctly."""
    values = logits_of(model, x)
    ranked = [int(k) for k in np.argsort(-values, kind="stable")]
    original = ranked[0]
    labels = ranked[1 : 1 + candidates] if target is None else [target]
    tau, y = np.zeros((*x.shape[1:], 2)), x

    def fooled() -> bool:
        prediction = int(np.argmax(values))
        return prediction != original if target is None else prediction == target

    iterations = 0
    while not fooled() and iterations < max_iter:
        current = int(np.argmax(values))  # the original label, unless a targeted attack strays
        dx, dy = derivatives(y)
        best: Array | None = None
        for k in labels:
            f = values[k] - values[current]
            g = logit_gradient(model, y, k) - logit_gradient(model, y, current)
            alpha = np.stack(((g * dx).sum(0), (g * dy).sum(0)), axis=-1)
            g_alpha = smoothed(alpha, sigma)
            if not g_alpha.any():
                continue  # no direction towards this label
            tau_k = -f * smoothed(g_alpha, sigma) / (g_alpha**2).sum()
            if best is None or size(tau + tau_k) < size(best):
                best = tau + tau_k
        if best is None or size(best) >= max_norm or size(best - tau) <= 1e-6:
            break
        tau = best
        y = deform(x, tau)
        values = logits_of(model, y)
        iterations += 1

    first, second = np.sort(values)[::-1][:2]
    if (not fooled() or first - second <= 1e-6) and tau.any():
        tau = tau * min(overshoot, max_norm / size(tau))
    return Result(tau, deform(x, tau), iterations)
