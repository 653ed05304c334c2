"""A flow of the plane cannot tear a ring from the disk inside it; with one more dimension it can (Dupont et al. 2019).

A flow is a homeomorphism: the image of the disk stays inside that of the ring's inner edge, a closed curve. A half
plane that holds that curve holds its convex hull, and the disk's image with it. So a linear readout is wrong somewhere,
however the field was trained.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.seeds import derive_seed
from pipeline.theory.claims import Annuli, Rings
from pipeline.theory.fields import Field, flow, lines, train

DISK, RING = (0.0, 0.5), (1.0, 1.5)  # radii
WIDTH, TRAINING_STEPS, LEARNING_RATE = 32, 150, 0.02
TRAINING_SOLVER_STEPS = 4  # everything reported is solved with 50


def points(radii: int, angles: int) -> tuple[Tensor, Tensor]:
    """Grids of disk and ring, edges and centre included: (N, 2), and 1.0 for the ring's, (N,)."""
    parts = [torch.linspace(*bounds, radii)[:, None, None] * circle(angles) for bounds in (DISK, RING)]
    each = radii * angles
    return torch.cat([part.reshape(-1, 2) for part in parts]), torch.arange(2 * each).ge(each).float()


def circle(angles: int) -> Tensor:
    """(angles, 2), of radius 1 about the origin."""
    angle = torch.arange(angles) * (2 * math.pi / angles)
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def measure() -> Annuli:
    """Seconds: two nets of a few hundred parameters are trained."""
    return Annuli(plane=_train(0), augmented=_train(1))


def _train(n_extra: int) -> Rings:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "annuli"))
        field, readout = Field(2 + n_extra, WIDTH), nn.Linear(2 + n_extra, 1)

    def ends(starts: Tensor, steps: int) -> Tensor:
        return flow(field, F.pad(starts, (0, n_extra)), steps=steps)

    starts, labels = points(4, 32)
    train(
        [*field.parameters(), *readout.parameters()],
        lambda: F.binary_cross_entropy_with_logits(readout(ends(starts, TRAINING_SOLVER_STEPS))[:, 0], labels),
        steps=TRAINING_STEPS,
        learning_rate=LEARNING_RATE,
    )
    with torch.no_grad():
        dense, dense_labels = points(20, 720)
        margins = readout(ends(dense, 50))[:, 0] * (2 * dense_labels - 1)
        drawn, drawn_labels = points(4, 40)
        centre, edge = ends(torch.zeros(1, 2), 50), ends(RING[0] * circle(720), 50)
        return Rings(
            n_extra=n_extra,
            starts=lines(drawn),
            is_ring=tuple((drawn_labels > 0).tolist()),
            ends=lines(ends(drawn, 50)),
            edge=lines(torch.cat((edge, edge[:1]))),
            normal=lines(readout.weight)[0],
            offset=readout.bias.item(),
            wrong=(margins <= 0).double().mean().item(),
            margin=margins.min().item(),
            turns=None if n_extra else winding(edge - centre),
        )


def winding(curve: Tensor) -> float:
    """How often a closed curve, (N, 2), goes around the origin."""
    angles = torch.atan2(curve[:, 1], curve[:, 0]).double()
    turns = (angles.roll(-1) - angles + math.pi).remainder(2 * math.pi) - math.pi
    return turns.sum().item() / (2 * math.pi)
