"""Capturing: equal to the module in value and structure, or an error of one line."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ditc.passes import Input, capture
from ditc.runtime.errors import CaptureError

from . import models
from .samples import sample


def refusal(call) -> str:
    with pytest.raises(CaptureError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inputs_have_roles_by_name() -> None:
    program = sample("pixart", "uncond-first").program
    assert program.inputs == (
        Input("hidden_states", (4, 3, 10, 10), torch.float32, "latents"),
        Input("encoder_hidden_states", (4, 7, 12), torch.float32, "condition"),
        Input("timestep", (4,), torch.int64, "timestep"),
        Input("encoder_attention_mask", (4, 7), torch.float32, "condition"),
    )
    assert program.constants == {
        "added_cond_kwargs.resolution": None,
        "added_cond_kwargs.aspect_ratio": None,
    }
    assert (program.cfg, program.outputs) == ("uncond-first", ("sample",))
    assert list(program.example) == [entry.name for entry in program.inputs]


def test_arguments_are_by_name() -> None:
    module, kwargs = models.dit(layers=1), models.dit_kwargs()
    found = refusal(lambda: capture(module, tuple(kwargs.values()), cfg="cond-first"))
    assert found == "arguments must be a dict by name, found a tuple"
    found = refusal(lambda: capture(module, {0: kwargs["hidden_states"]}, cfg="cond-first"))
    assert found == "arguments must be a dict by name, found 0 for a name"
    found = refusal(lambda: capture(module, kwargs, cfg="separate", unconditional=[1]))
    assert found == "arguments must be a dict by name, found a list"


def test_the_modules_own_structure_comes_back() -> None:
    model = sample("dit", "cond-first")
    out = model.program(**model.kwargs(0))
    assert type(out).__name__ == "Transformer2DModelOutput"
    assert out.sample.shape == (4, 3, 10, 10)
    pair = sample("single-module", "cond-first")
    assert pair.program.outputs == ("output_0", "output_1")
    assert [type(part) for part in pair.program(**pair.kwargs(0))] == [torch.Tensor] * 2


def test_a_tuple_of_one() -> None:
    kwargs = {**models.dit_kwargs(), "return_dict": False}
    program = capture(models.dit(layers=1), kwargs, cfg="cond-first")
    out = program(**kwargs)
    assert isinstance(out, tuple)
    assert len(out) == 1
    assert program.constants == {"return_dict": False}


def test_the_order_of_arguments_does_not_matter() -> None:
    module, kwargs = models.pixart(layers=1), models.pixart_kwargs()
    scrambled = dict(reversed(kwargs.items()))
    program = capture(module, scrambled, cfg="uncond-first")
    assert program.in_paths["hidden_states"] == "hidden_states"
    shapes = {entry.name: entry.shape for entry in program.inputs}
    assert shapes["encoder_attention_mask"] == (4, 7)
    with torch.no_grad():
        assert torch.equal(program(**kwargs)[0], module(**kwargs)[0])


def test_weights_are_shared_not_copied() -> None:
    model = sample("dit", "cond-first")
    graph_module = model.program.graph_module
    parameters = dict(model.module.named_parameters())
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    assert parameters.keys() - used == set()
    assert all(graph_module.get_parameter(name) is parameters[name] for name in parameters)


def test_training_modes_are_restored() -> None:
    module = models.fused_qkv().train()
    module.attentions[0].eval()
    modes = [part.training for part in module.modules()]
    capture(module, models.plain_kwargs(), cfg="cond-first")
    assert [part.training for part in module.modules()] == modes
    with pytest.raises(CaptureError):
        capture(module, {"x": torch.zeros(4, 25, 16)}, cfg="cond-first")
    assert [part.training for part in module.modules()] == modes


def test_dropout_is_off_and_gone() -> None:
    block = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    program = capture(Named(block).train(), {"x": models.noise(2, 16)})
    targets = [str(node.target) for node in program.graph_module.graph.nodes]
    assert [target for target in targets if target.startswith("aten")] == ["aten.linear.default"]


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


class Overwriting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class NoTensor(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x + 1, 3


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Branching(), ["Branching can't be captured", "reads values that come from x"]),
        (Counting(), ["the module changes calls while it runs", "leave its buffers"]),
        (Overwriting(), ["the module changes x while it runs", "leave its buffers"]),
        (NoTensor(), ["output 3 is no tensor: return tensors only"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_are_refused(module: nn.Module, said: list[str]) -> None:
    message = refusal(lambda: capture(module, {"x": models.noise(2, 4)}))
    assert all(words in message for words in said)


def test_a_call_that_fails_names_what_it_ran_into() -> None:
    message = refusal(lambda: capture(models.fused_qkv(), {"x": torch.zeros(4, 25, 16)}))
    assert message.startswith("PlainDenoiser can't be captured: ")
    assert "'t'" in message


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        (
            models.plain_kwargs(batch=3),
            {"cfg": "uncond-first"},
            "cfg is uncond-first, but x has a batch of 3: pass both halves",
        ),
        (
            models.plain_kwargs(),
            {"cfg": "both"},
            "cfg is 'both', expected 'cond-first', 'uncond-first', 'separate', "
            "'separate-uncond-first' or None",
        ),
        (
            models.plain_kwargs(),
            {"latents": "z"},
            "0 of the inputs (x, t) are named as latents: state the one with latents='...'",
        ),
    ],
)
def test_layouts_and_names_that_cannot_be(
    kwargs: models.Kwargs, options: dict[str, str], message: str
) -> None:
    assert refusal(lambda: capture(models.fused_qkv(), kwargs, **options)) == message


class Renamed(nn.Module):
    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return noisy * sigma[:, None]


def test_latents_and_timestep_can_be_stated() -> None:
    kwargs = {"noisy": models.noise(2, 4), "sigma": torch.ones(2)}
    program = capture(Renamed(), kwargs, latents="noisy", timestep="sigma")
    assert [entry.role for entry in program.inputs] == ["latents", "timestep"]
    assert program.latents.name == "noisy"


def test_an_odd_batch_is_fine_without_cfg() -> None:
    assert capture(models.fused_qkv(), models.plain_kwargs(batch=3)).latents.shape == (3, 25, 16)


CALLS = {
    "missing": ({"t": None}, "argument t is missing: pass a tensor [4]"),
    "shape": (
        {"x": torch.zeros(4, 26, 16)},
        "argument x is torch.float32 [4, 26, 16], captured as torch.float32 [4, 25, 16]: capture",
    ),
    "dtype": (
        {"t": torch.zeros(4, dtype=torch.int64)},
        "argument t is torch.int64 [4], captured as torch.float32 [4]: capture again",
    ),
    "no tensor": ({"t": 0.5}, "argument t is float, expected a tensor"),
    "unknown": ({"mask": torch.zeros(1)}, "unknown argument mask: the program takes t, x"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_unlike_the_capture(name: str) -> None:
    change, message = CALLS[name]
    kwargs = {**models.plain_kwargs(), **change}
    if name == "missing":
        del kwargs["t"]
    program = sample("fused-qkv", "cond-first").program
    assert refusal(lambda: program(**kwargs)).startswith(message)


@pytest.mark.parametrize(
    ("given", "found"), [(3, "3"), (torch.ones(2, 2), "a tensor")], ids=["number", "tensor"]
)
def test_constants_are_fixed(given: object, found: str) -> None:
    model = sample("pixart", "cond-first")
    kwargs = {**model.kwargs(0), "added_cond_kwargs": {"resolution": given, "aspect_ratio": None}}
    assert refusal(lambda: model.program(**kwargs)) == (
        f"argument added_cond_kwargs.resolution is {found}, captured as None: capture again with "
        "this value"
    )


def test_unknown_arguments_that_are_none_do_not_matter() -> None:
    model = sample("fused-qkv", "cond-first")
    kwargs = model.kwargs(0)
    assert torch.equal(model.program(**kwargs, mask=None), model.program(**kwargs))


@dataclass
class Opaque:
    value: int


def test_arguments_that_torch_does_not_know() -> None:
    message = refusal(lambda: capture(Named(nn.Identity()), {"x": Opaque(3)}))
    assert message.startswith("Named can't be captured: ")
    assert "Opaque" in message


class InPlace(nn.Module):
    """Writes into views of what it computed itself, which is fine."""

    def __init__(self) -> None:
        super().__init__()
        self.block = models.FusedQkvAttention(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y[:, :3].mul_(2)
        query = y.unflatten(-1, (2, -1)).transpose(1, 2)
        out = nn.functional.scaled_dot_product_attention(query, query, query)
        return self.block(y + out.transpose(1, 2).flatten(2)).mul_(0.5)


def test_writes_into_intermediate_values_are_kept() -> None:
    module = models.randomised(InPlace())
    kwargs = {"x": models.noise(4, 25, 16)}
    program = capture(module, kwargs, cfg="cond-first")
    with torch.no_grad():
        assert torch.equal(program(**kwargs), module(**kwargs))
    assert [site.name for site in program.sites] == ["attention", "block"]
    assert program.sites[1].eligible


class Namesakes(nn.Module):
    """Weights named as an argument and as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(models.noise(16, 16))
        self.sample = nn.Parameter(models.noise(16, 16, seed=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x @ self.x @ self.sample + t[:, None, None]


def test_a_weight_named_as_an_argument() -> None:
    module, kwargs = Namesakes(), models.plain_kwargs()
    program = capture(module, kwargs)
    assert [entry.name for entry in program.inputs] == ["x", "t"]
    assert torch.equal(program(**kwargs), module(**kwargs))


def test_an_output_named_as_an_argument() -> None:
    class Echo(nn.Module):
        def forward(self, sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return sample * t[:, None, None]

    kwargs = models.plain_kwargs()
    assert capture(Echo(), {"sample": kwargs["x"], "t": kwargs["t"]}).outputs == ("sample_out",)


def test_a_timestep_that_is_not_there() -> None:
    message = refusal(lambda: capture(models.small(), models.plain_kwargs(), timestep="sigma"))
    assert message == ("0 of the inputs (x, t) are the timestep: state the one with timestep='...'")


def test_latents_without_a_batch() -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * t

    scalars = {"x": torch.tensor(1.0), "t": torch.tensor(1.0)}
    assert "has a batch of 1" in refusal(lambda: capture(Scale(), scalars, cfg="cond-first"))
