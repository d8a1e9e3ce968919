"""Sites: found by operators and data flow in any model, or left alone with a reason."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ditc.passes import Program, Site, capture

from . import models
from .samples import sample

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def brief(program: Program) -> list[tuple[str, str, int, int, int, int, bool]]:
    return [
        (
            site.name,
            site.kind,
            site.tokens,
            site.context_tokens,
            site.heads,
            site.head_dim,
            site.eligible,
        )
        for site in program.sites
    ]


EXPECTED = {
    "dit": [(f"transformer_blocks.{i}.attn1", "self", 25, 25, 3, 8, True) for i in range(3)],
    "pixart": [
        site
        for i in range(2)
        for site in (
            (f"transformer_blocks.{i}.attn1", "self", 25, 25, 3, 8, True),
            (f"transformer_blocks.{i}.attn2", "cross", 25, 7, 3, 8, False),
        )
    ],
    "fused-qkv": [(f"attentions.{i}", "self", 25, 25, 2, 8, True) for i in range(2)],
    "merged-heads": [(f"attentions.{i}", "self", 25, 25, 2, 8, True) for i in range(2)],
    "single-module": [
        ("attention", "self", 25, 25, 2, 8, True),
        ("attention#1", "self", 25, 25, 2, 8, True),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_sites_of_the_models(name: str) -> None:
    assert brief(sample(name, "cond-first").program) == EXPECTED[name]


def test_scales_are_those_of_query_and_key_as_they_are_named() -> None:
    scales = {name: sample(name, "cond-first").program.sites[0].scale for name in EXPECTED}
    assert scales == {
        "dit": 8**-0.5,
        "pixart": 8**-0.5,
        "fused-qkv": 1.0,  # the query is scaled before
        "merged-heads": 8**-0.5,
        "single-module": 0.3,
    }


class Block(nn.Module):
    """One attention whose parts can be changed one by one."""

    def __init__(self, attend: Attend, last: str = "projection", width: int = 16) -> None:
        super().__init__()
        self.attend, self.last = attend, last
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        query, key, value = (
            layer(source).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        out = self.attend(query, key, value).transpose(1, 2).flatten(2)
        if self.last == "residual first":
            return self.to_out(out + x)
        if self.last == "projection feeds more":
            return self.to_out(out) + self.to_q(x) * 0 + query.transpose(1, 2).flatten(2)
        if self.last == "none":
            return out.softmax(dim=-1)
        if self.last == "gated":
            return x + self.to_out(out * torch.sigmoid(self.to_q(x) * 0.5))
        return x + self.to_out(out)


def sdpa(**options: object) -> Attend:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, **options)

    return attend


def written(scores: Callable[[torch.Tensor], torch.Tensor]) -> Attend:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return scores(query @ key.transpose(-1, -2)).softmax(-1) @ value

    return attend


def only_site(block: nn.Module, **kwargs: torch.Tensor) -> Site:
    given = {"x": models.noise(4, 25, 16), **kwargs}
    (site,) = capture(models.randomised(block), given, cfg="cond-first").sites
    return site


MASK = torch.ones(25, 25, dtype=torch.bool)


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (sdpa(attn_mask=MASK), "its attention has a mask for each query"),
        (sdpa(is_causal=True), "its attention is causal"),
        (written(lambda scores: scores * 0.5 + torch.zeros(25, 25)), "its attention has a mask"),
    ],
    ids=["mask", "causal", "written mask"],
)
def test_attention_that_is_more_than_attention(attend: Attend, reason: str) -> None:
    site = only_site(Block(attend))
    assert (site.kind, site.eligible, site.reason) == ("self", False, reason)


def test_grouped_queries_are_a_site() -> None:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(
            query, key[:, :1], value[:, :1], enable_gqa=True
        )

    site = only_site(Block(attend))
    assert (site.kind, site.heads, site.eligible) == ("self", 2, True)


@pytest.mark.parametrize("tokens", [7, 25])
def test_cross_attention_is_left_alone(tokens: int) -> None:
    site = only_site(Block(sdpa()), context=models.noise(4, tokens, 16, seed=1))
    assert (site.kind, site.context_tokens, site.eligible) == ("cross", tokens, False)
    assert site.reason == "cross-attention is left alone"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("residual first", "its output reaches aten.add.Tensor before any projection"),
        ("none", "its output reaches aten.softmax.int before any projection"),
        ("projection feeds more", "its projections also feed aten."),
    ],
)
def test_ends_that_are_no_site(last: str, reason: str) -> None:
    site = only_site(Block(sdpa(), last))
    assert not site.eligible
    assert site.reason.startswith(reason)


def test_a_gate_before_the_projection_is_part_of_the_site() -> None:
    assert only_site(Block(sdpa(), "gated")).eligible


@pytest.mark.parametrize(
    ("scores", "scale"), [(lambda s: s, 1.0), (lambda s: s * 0.5 / 4, 0.125)], ids=["bare", "both"]
)
def test_scales_written_out(scores: Callable[[torch.Tensor], torch.Tensor], scale: float) -> None:
    site = only_site(Block(written(scores)))
    assert (site.scale, site.eligible) == (scale, True)


def no_projection(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(query, key, value)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        return x + self.to_out(no_projection(x, context, context))


def test_queries_that_no_projection_makes() -> None:
    site = only_site(Bare())
    assert (site.kind, site.eligible) == ("self", False)
    assert site.reason == "its query comes from no projection"
    crossed = only_site(Bare(), context=models.noise(4, 25, 16, seed=1))
    assert (crossed.kind, crossed.reason) == ("cross", "cross-attention is left alone")


class Joint(nn.Module):
    """Image and text tokens attend to both, each with projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(16, 48), nn.Linear(16, 48)
        self.image_out, self.text_out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = zip(self.image(x).chunk(3, -1), self.text(context).chunk(3, -1), strict=True)
        query, key, value = (
            torch.cat(pair, 1).unflatten(-1, (2, -1)).transpose(1, 2) for pair in parts
        )
        out = sdpa()(query, key, value).transpose(1, 2).flatten(2)
        return x + self.image_out(out[:, :25]), context + self.text_out(out[:, 25:])


def test_joint_attention_is_found_with_both_exits_and_its_text() -> None:
    site = only_site(Joint(), context=models.noise(4, 7, 16))
    assert (site.kind, site.tokens, site.context_tokens) == ("joint", 32, 32)
    assert (len(site.projections), len(site.exits)) == (2, 2)
    assert (site.eligible, site.text) == (True, (25, 32))


class Mlp(nn.Module):
    """No attention, though it has matrix products and a softmax over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.softmax(self.up(x), dim=-1)
        experts = (x.transpose(1, 2) @ x).softmax(dim=1)
        return self.down(gate * x) + x @ experts


def test_nothing_is_found_in_an_mlp() -> None:
    program = capture(models.randomised(Mlp()), {"x": models.noise(4, 25, 16)}, cfg="cond-first")
    assert program.sites == ()


def test_names_stay_unique_where_modules_are_shared() -> None:
    block = models.fused_qkv(layers=1)
    block.attentions.append(block.attentions[0])
    block.mlps.append(block.mlps[0])
    block.downs.append(block.downs[0])
    program = capture(block, models.plain_kwargs(), cfg="cond-first")
    names = [site.name for site in program.sites]
    assert len(set(names)) == len(names) == 2


class Behind(models.SdpaAttention):
    """Softmax from the right: columns of the scores weigh the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.to_q(x), self.to_k(x), self.to_v(x)
        weights = (query @ key.transpose(1, 2)).softmax(-1)
        return self.to_out((value.transpose(1, 2) @ weights).transpose(1, 2))


def test_weights_on_the_right_are_no_attention() -> None:
    module = models.randomised(models.PlainDenoiser(Behind, layers=1))
    assert capture(module, models.plain_kwargs()).sites == ()


def test_heads_behind_one_projection_of_all_three() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            x = (x * t[:, None, None]).transpose(0, 1)
            return self.attention(x, x, x)[0]

    (site,) = capture(models.randomised(Packed()), models.plain_kwargs()).sites
    assert (site.tokens, site.heads, site.head_dim) == (25, 2, 8)


class Weighed(nn.Module):
    """A vector times what enters the attention: an axis of a product's goes."""

    def __init__(self, behind: bool) -> None:
        super().__init__()
        self.behind, self.attention = behind, models.SdpaAttention(16, 2)
        self.weights = nn.Parameter(torch.empty(16 if behind else 25))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        weighed = (x @ self.weights)[..., None] if self.behind else (self.weights @ x)[:, None]
        return self.attention(x * weighed * t[:, None, None])


@pytest.mark.parametrize("behind", [False, True])
def test_products_with_a_vector(behind: bool) -> None:
    site = only_site(Weighed(behind), t=torch.ones(4))
    assert site.eligible
    assert site.text == (0, 0)
