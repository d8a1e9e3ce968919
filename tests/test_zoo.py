"""The zoo: every transformer of diffusers is captured or refused; families under every method."""

from pathlib import Path

import pytest

from ditc.passes import Program, capture
from ditc.passes.fingerprint import program_digest
from ditc.runtime.errors import CaptureError
from ditc.tools.zoo import ZOO, left_out, main
from ditc.tools.zoo_entry import Tiny
from ditc.tools.zoo_outcome import Outcome, faults, keep, kept, outcome, summary, table
from ditc.tools.zoo_trial import METHODS, Trial, captured, trial

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
    "HunyuanVideoTransformer3DModel": {(32, 38)},
    "QwenImageTransformer2DModel": {(0, 6)},
    "T5FilmDecoder": {(0, 0)},
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
    assert faults(outcome(result)) == []
    assert result.program is not None
    sites = [site for site in result.program.sites if site.eligible]
    assert {site.text for site in sites} == FAMILIES[title]
    assert result.errors.keys() == {*METHODS, "mixed"}
    assert result.refused == {}


@pytest.mark.parametrize("title", ["SanaTransformer2DModel", "LuminaNextDiT2DModel"])
def test_attention_that_is_left_alone(title: str) -> None:
    result = trial(named(title))
    assert result.program is not None
    assert not any(site.eligible for site in result.program.sites)
    assert all(site.reason for site in result.program.sites)


def made(title: str, **changes: object) -> Outcome:
    given = {"failure": "", "left_alone": {}, "texts": (), "errors": {}, "refused": {}}
    return Outcome(**{"title": title, "captured": True, "eligible": 2, **given, **changes})


def test_the_table_names_what_was_refused() -> None:
    failed = Trial(named("DiTTransformer2DModel"), failure="no (/a/b/model.py:3 | x)")
    result = outcome(failed)
    assert (result.captured, faults(result)) == (False, ["no (/a/b/model.py:3 | x)"])
    assert table([result]).splitlines()[-1] == (
        "| DiTTransformer2DModel | no | | | | | no (model.py:3 / x) |"
    )


def test_the_table_and_its_counts() -> None:
    results = [
        made("A", errors={"ast": 2e-7, "mixed": 3e-6, "onnx": 2e-5}, texts=(6,)),
        made("A (large)", errors={"ast": 3e-5, "mixed": 1e-6, "onnx": 2e-3}),
        made("B", errors={"ast": 1e-6}, refused={"asc": "no halves"}, left_alone={"a mask": 3}),
        made("C", captured=False, eligible=0, failure="C can't be captured"),
        made("D", eligible=0, left_alone={"cross-attention is left alone": 4}),
    ]
    assert summary(results).splitlines() == [
        "3 of 4 classes captured, equal to the bit (5 models)",
        "3 models have sites; 2 agree with the reference to 1e-05, 1 of them under every method",
        "1 agree with it to 1e-03 in ONNX Runtime",
    ]
    assert table(results).splitlines()[-5:] == [
        "| A | yes | 2 of 2 | 6 | 3e-06 | 2e-05 |  |",
        "| A (large) | yes | 2 of 2 |  | 3e-05 | 2e-03 | **ast: error 3.0e-05 above 1e-05**; "
        "**onnx: error 2.0e-03 above 1e-03** |",
        "| B | yes | 2 of 5 |  | 1e-06 |  | 3 × a mask; no `asc`: no halves |",
        "| C | no | | | | | C can't be captured |",
        "| D | yes | 0 of 4 |  |  |  | 4 × cross-attention is left alone |",
    ]


def test_outcomes_are_kept_and_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zoo.json"
    assert kept(file) == {}
    results = [
        made("DiTTransformer2DModel", errors={"mixed": 1e-6}, texts=(1, 2)),
        made("WanAnimate2Transformer3DModel", captured=False, failure="no"),
    ]
    keep(file, results)
    assert list(kept(file).values()) == results
    told = tmp_path / "models.md"
    names = [result.title for result in results]
    assert main([*names, "--keep", str(file), "--table", str(told)]) == 0
    assert told.read_text() == table(results)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "DiTTransformer2DModel: error 1.0e-06",
        "WanAnimate2Transformer3DModel: no",
    ]
    keep(file, [made("DiTTransformer2DModel", errors={"mixed": 1e-4})])
    assert main(["DiTTransformer2DModel", "--keep", str(file)]) == 1
