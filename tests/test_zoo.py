"""The zoo: every transformer of diffusers is captured or refused; families under every method."""

import pytest

from ditc.passes import Program, capture
from ditc.passes.fingerprint import program_digest
from ditc.runtime.errors import CaptureError
from ditc.tools.zoo import ZOO, faults, left_out, table
from ditc.tools.zoo_entry import Tiny
from ditc.tools.zoo_trial import Trial, captured, trial

from .nan_tokens import nan_tokens

REFUSED = {
    "HiDreamImageTransformer2DModel": ("hidream_image.py:", "another at every step"),
    "AnyFlowFARTransformer3DModel": ("flex_attention", "anyflow_far.py"),
    "Kandinsky6SRTransformer3DModel": ("flex_attention", "kandinsky6_sr.py"),
    "WanAnimate2Transformer3DModel": ("argument kv_cache is a WanAnimate2KVCache",),
}
FAMILIES = {
    "SD3Transformer2DModel": {(16, 22)},
    "SD3Transformer2DModel (3.5)": {(0, 0), (16, 22)},
    "FluxTransformer2DModel (dev)": {(0, 6)},
    "Flux2Transformer2DModel": {(0, 6)},
    "HunyuanDiT2DModel": {(0, 0)},
    "CogVideoXTransformer3DModel": {(0, 6)},
    "LTXVideoTransformer3DModel": {(0, 0)},
    "WanTransformer3DModel": {(0, 0)},
    "LatteTransformer3DModel": {(0, 0)},
    "Lumina2Transformer2DModel": {(0, 0), (0, 6)},
    "AuraFlowTransformer2DModel": {(0, 14)},
    "ZImageTransformer2DModel": {(16, 32), (16, 64)},
    "CosmosTransformer3DModel": {(0, 0)},
}
"""Where the text is at the sites that may be compressed, as the models' own code joins it."""


def named(title: str) -> Tiny:
    return next(tiny for tiny in ZOO if tiny.title == title)


def test_every_transformer_of_diffusers_is_tried() -> None:
    assert left_out() == ()
    assert len({tiny.title for tiny in ZOO}) == len(ZOO)
    assert len(REFUSED) <= 0.1 * len({tiny.name for tiny in ZOO})


@pytest.mark.parametrize("tiny", ZOO, ids=lambda tiny: tiny.title)
@pytest.mark.filterwarnings("ignore")
def test_captured_to_the_bit_or_refused_with_the_reason(tiny: Tiny) -> None:
    if tiny.name not in REFUSED:
        _, program = captured(tiny)
        check_text(program)
        return
    with pytest.raises(CaptureError) as caught:
        captured(tiny)
    assert all(words in str(caught.value) for words in REFUSED[tiny.name])
    assert "\n" not in str(caught.value)


def check_text(program: Program) -> None:
    """Check text ranges against a run on NaN."""
    image = nan_tokens(program)
    for site in program.sites:
        if site.eligible:
            first, last = site.text
            text = tuple(not first <= token < last for token in range(site.tokens))
            assert text == image[site.name]


@pytest.mark.parametrize("title", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_families_are_captured_without_their_weights(title: str) -> None:
    tiny = named(title)
    made = [
        capture(module, tiny.kwargs(), tiny.cfg, latents=tiny.latents, timestep=tiny.timestep)
        for module in (tiny.module(), tiny.module().to("meta"))
    ]
    assert program_digest(made[0]) == program_digest(made[1])


@pytest.mark.parametrize("title", FAMILIES)
def test_families_agree_with_the_intercepted_model(title: str) -> None:
    result = trial(named(title))
    assert faults(result) == []
    assert result.program is not None
    sites = [site for site in result.program.sites if site.eligible]
    assert {site.text for site in sites} == FAMILIES[title]
    assert {"wa-rs", "ast", "mixed"} <= result.errors.keys()


@pytest.mark.parametrize("title", ["SanaTransformer2DModel", "LuminaNextDiT2DModel"])
def test_attention_that_is_left_alone(title: str) -> None:
    result = trial(named(title))
    assert result.program is not None
    assert not any(site.eligible for site in result.program.sites)
    assert all(site.reason for site in result.program.sites)


def test_the_table_names_what_was_refused() -> None:
    failed = Trial(named("DiTTransformer2DModel"), failure="no (File /a/b/model.py:3 | x)")
    assert table([failed]).splitlines()[-1] == (
        "| DiTTransformer2DModel | no | | | no (File model.py:3 / x) |"
    )
