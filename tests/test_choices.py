"""Choices: what conditioning decides is followed and fixed, what the latents decide is refused."""

import pytest
import torch
from torch import nn

from ditc.passes import capture
from ditc.runtime.errors import CaptureError

from .models import noise

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


class Ragged(nn.Module):
    """Everything that reads values of a mask: lists, lengths, masks as indices, repeats."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(dim=1).tolist()
        kept = torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
        kept = kept * t[0] + x[mask.bool()]
        if int(mask[0].sum()) == 3:
            kept = kept.repeat_interleave(mask.sum(dim=1)[:1], dim=0)
        x = x.clone()
        x[mask == 0] = kept.mean()
        return x + kept.sum() + mask.nonzero().sum()


def kwargs(seed: int = 0) -> dict[str, object]:
    return {"x": noise(2, 5, 4, seed=seed), "t": torch.full((2,), 0.5 + seed), "mask": MASK.clone()}


def test_what_a_mask_decides_is_followed_to_the_bit() -> None:
    module = Ragged()
    program = capture(module, kwargs())
    assert [entry.name for entry in program.inputs] == ["x", "t"]
    assert torch.equal(program.constants["mask"], MASK)
    for seed in range(3):
        assert torch.equal(program(**kwargs(seed)), module(**kwargs(seed)))
    without = {name: value for name, value in kwargs(1).items() if name != "mask"}
    assert torch.equal(program(**without), module(**kwargs(1)))


def test_another_mask_is_refused() -> None:
    program = capture(Ragged(), kwargs())
    with pytest.raises(CaptureError, match="argument mask is unlike what was captured"):
        program(**{**kwargs(), "mask": torch.ones(2, 5, dtype=torch.int64)})


class ByLatents(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * 2 if (x * mask).sum() > 0 else x


def test_what_the_latents_decide_is_refused_with_the_line() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(ByLatents(), {"x": noise(2, 5), "mask": torch.ones(2, 5)})
    assert "test_choices.py:" in str(caught.value)
    assert "in forward reads values that come from x, which is another at every step" in str(
        caught.value
    )


class Listed(nn.Module):
    def forward(self, x: list[torch.Tensor], t: torch.Tensor) -> list[torch.Tensor]:
        return [sample * t[index] for index, sample in enumerate(x)]


def test_lists_of_samples_become_one_tensor() -> None:
    module, given = Listed(), {"x": [noise(3, 4), noise(3, 4, seed=1)], "t": torch.ones(2)}
    program = capture(module, given)
    assert (program.latents.shape, program.outputs) == ((2, 3, 4), ("sample",))
    assert all(torch.equal(a, b) for a, b in zip(program(**given), module(**given), strict=True))
    with pytest.raises(CaptureError, match="samples of argument x differ in shape"):
        program(x=[noise(3, 4), noise(2, 4)], t=torch.ones(2))


class Cached:
    pass


class Caching(nn.Module):
    def forward(self, x: torch.Tensor, cache: Cached) -> torch.Tensor:
        del cache
        return x + 1


def test_arguments_of_a_class_are_refused_by_name() -> None:
    with pytest.raises(CaptureError, match="argument cache is a Cached, expected tensors"):
        capture(Caching(), {"x": noise(3, 4), "cache": Cached()})
    with pytest.raises(CaptureError, match=r"Listed can't be captured: .*'cache'"):
        capture(Listed(), {"x": [noise(3, 4)], "t": torch.ones(1), "cache": 3})
