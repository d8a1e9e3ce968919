from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ditc.tools import glyphs
from ditc.tools.export_demo import export, measure
from ditc.tools.train_demo import Options, train

OPTIONS = Options(steps=2, batch=2, layers=1, heads=2, head_dim=8)


def test_export_ships_the_rounded_average(tmp_path: Path) -> None:
    state = train(OPTIONS, tmp_path / "work")
    classifier = glyphs.GlyphClassifier().state_dict()
    save_file(classifier, tmp_path / "work" / glyphs.CLASSIFIER)
    export(tmp_path / "work", tmp_path / "model")
    shipped = glyphs.load_demo_model(tmp_path / "model").state_dict()
    assert shipped.keys() == state.ema.keys()
    for name, value in state.ema.items():
        assert torch.equal(shipped[name], value.half().float())
    stored = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    shares = measure(tmp_path / "model", per_class=1, settings=[(1, 3.0), (2, 1.0)])
    assert shares.keys() == {"1 steps, guidance 3.0", "2 steps, guidance 1.0"}
    # An untrained model is read right by chance only.
    assert all(0 <= share < 0.3 for share in shares.values())
    assert (tmp_path / "model" / "samples.png").read_bytes().startswith(b"\x89PNG")
