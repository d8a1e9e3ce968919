"""Runs of the demo model in a bundle: images of its classes, and its steps beside PyTorch's."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from ditc.passes import Schedule, TorchSession
from ditc.runtime import Bundle

from .glyphs import CLASSES, NULL_CLASS
from .trajectory import Trajectory

__all__ = ["GUIDANCE_SCALE", "image_of", "images_of", "steps_beside_torch"]

GUIDANCE_SCALE = 4.0
Images = npt.NDArray[np.float32]


def image_of(bundle: Bundle, label: int, seed: int | None = None) -> Images:
    """Return an image of a class, [1, 1, height, width]; its seed is the class if None."""
    return bundle.generate(
        seed=label if seed is None else seed,
        guidance_scale=GUIDANCE_SCALE,
        class_labels=np.array([label, NULL_CLASS]),
    )


def images_of(bundle: Bundle, classes: int = len(CLASSES)) -> Images:
    """Return an image of each of the first classes, [classes, 1, height, width]."""
    return np.concatenate([image_of(bundle, label) for label in range(classes)])


def steps_beside_torch(sched: Schedule, bundle: Bundle) -> Iterator[tuple[Images, Images]]:
    """Yield the output of each step, the bundle's and PyTorch's, on the same latents.

    PyTorch runs the schedule, and sampling goes on from its output.

    Args:
        sched: what the bundle was compiled from.
        bundle: with a sampler.
    """
    assert bundle.manifest.sampler is not None
    session = TorchSession(sched)
    trajectory = Trajectory(sched.program, bundle.manifest.sampler, GUIDANCE_SCALE, seed=1)
    for step in range(sched.steps):
        inputs = trajectory.inputs(step)
        expected = pytree.tree_leaves(session(step, **inputs))[0].numpy()
        found = bundle.step(step, **{name: value.numpy() for name, value in inputs.items()})
        yield np.asarray(found, np.float32), expected
        trajectory.advance(step, torch.from_numpy(expected))
