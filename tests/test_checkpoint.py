"""Checkpoints: tensor by tensor, files that change, models made of shapes, compiled unseen."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ditc.export import Checkpoint, compile, empty_model  # noqa: A004 (the public name)
from ditc.passes import Plan, Program, TorchSession, capture, schedule
from ditc.passes.fingerprint import program_digest
from ditc.runtime.errors import CaptureError, LoweringError

from . import models


def sharded(module: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model's weights in two shards with an index, as hubs hold them."""
    folder.mkdir()
    tensors = {name: value.to(dtype) for name, value in module.state_dict().items()}
    names = sorted(tensors)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def unloaded(folder: Path) -> tuple[Program, Checkpoint]:
    checkpoint = Checkpoint(folder)
    module = empty_model(models.dit, checkpoint)
    assert all(parameter.is_meta for parameter in module.parameters())
    kwargs = models.dit_kwargs()
    return capture(module, kwargs, cfg="cond-first", weights=checkpoint), checkpoint


def mixed(program: Program) -> Plan:
    return Plan.uniform(program, steps=4, method="ast").replace(2, program.sites[0].name, "wa-rs")


def test_tensors_are_read_one_by_one(tmp_path: Path) -> None:
    module = models.dit()
    checkpoint = Checkpoint(sharded(module, tmp_path / "model"))
    for name, value in module.state_dict().items():
        assert torch.equal(checkpoint.tensor(name), value)
        assert checkpoint.shapes[name] == tuple(value.shape)
        assert checkpoint.dtypes[name] == value.dtype
    assert checkpoint.nbytes == sum(value.nbytes for value in module.state_dict().values())
    with pytest.raises(LoweringError, match="has no tensor nobody"):
        checkpoint.tensor("nobody")


def test_a_bundle_of_an_unseen_model_is_that_of_the_model(tmp_path: Path) -> None:
    """Every file to the byte, though no weight was there at capture."""
    module = models.dit()
    program, _ = unloaded(sharded(module, tmp_path / "model"))
    loaded = capture(module, models.dit_kwargs(), cfg="cond-first")
    assert program_digest(program) == program_digest(loaded)
    assert program.identity == loaded.identity
    for name, made in (("unseen", program), ("seen", loaded)):
        compile(schedule(made, mixed(made)), tmp_path / name, jobs=1, cache=tmp_path / name / "..")
    files = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "unseen").iterdir())
    for name in files:
        assert (tmp_path / "seen" / name).read_bytes() == (tmp_path / "unseen" / name).read_bytes()


def test_a_checkpoint_of_halves_is_widened(tmp_path: Path) -> None:
    module = models.dit()
    program, _ = unloaded(sharded(module, tmp_path / "model", torch.bfloat16))
    bundle = compile(schedule(program, mixed(program)), tmp_path / "bundle", jobs=1)
    stored = Checkpoint(bundle / "weights.safetensors")
    expected = module.proj_out_2.bias.to(torch.bfloat16).float()
    assert torch.equal(stored.tensor("proj_out_2.bias"), expected)


def test_what_isn_t_loaded_is_not_run(tmp_path: Path) -> None:
    program, _ = unloaded(sharded(models.dit(), tmp_path / "model"))
    message = "the weights of .*DiTTransformer2DModel aren't loaded"
    with pytest.raises(CaptureError, match=message):
        program(**models.dit_kwargs())
    with pytest.raises(CaptureError, match=message):
        TorchSession(schedule(program, mixed(program)))(0, **models.dit_kwargs())


def test_a_program_that_doesn_t_say_where_its_weights_lie(tmp_path: Path) -> None:
    checkpoint = Checkpoint(sharded(models.dit(), tmp_path / "model"))
    module = empty_model(models.dit, checkpoint)
    program = capture(module, models.dit_kwargs(), cfg="cond-first")
    with pytest.raises(LoweringError, match="isn't loaded, and the program doesn't say where"):
        compile(schedule(program, mixed(program)), tmp_path / "bundle", jobs=1)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("how", ["touched", "rewritten", "cut", "gone"])
def test_a_file_that_changed_since_capture(tmp_path: Path, how: str) -> None:
    folder = sharded(models.dit(), tmp_path / "model")
    program, checkpoint = unloaded(folder)
    file = folder / "part-2.safetensors"
    if how == "touched":
        os.utime(file, ns=(1, 1))
    elif how == "rewritten":
        tensors = {name: checkpoint.tensor(name) + 1 for name in sorted(checkpoint.shapes)[1::2]}
        save_file(tensors, file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    with pytest.raises(LoweringError, match=r"part-2.safetensors: (changed|can't be read)"):
        compile(schedule(program, mixed(program)), tmp_path / "bundle", jobs=1)
    assert not (tmp_path / "bundle").exists()


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no tensors")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, twice / f"{name}.safetensors")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "m.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    for path, message in (
        (tmp_path / "nowhere", "neither a safetensors file nor a folder"),
        (tmp_path / "empty", "found none"),
        (tmp_path / "text.safetensors", "can't be read as safetensors"),
        (twice, "found a.safetensors, b.safetensors: name the file"),
        (broken, "names gone.safetensors, which isn't there"),
    ):
        with pytest.raises(CaptureError, match=message):
            Checkpoint(path)


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    checkpoint = Checkpoint(sharded(models.dit(layers=1), tmp_path / "model"))
    with pytest.raises(CaptureError, match=r"lacks transformer_blocks\.1\."):
        empty_model(models.dit, checkpoint)
    with pytest.raises(
        CaptureError, match=r"weight is \[24, 3, 2, 2\], the model has \[288, 4, 2, 2\]"
    ):
        empty_model(lambda: type(models.dit(layers=1))(num_attention_heads=4), checkpoint)


def test_tables_of_positions_are_real(tmp_path: Path) -> None:
    module = models.dit(layers=1)
    module.register_buffer("table", torch.arange(3.0), persistent=False)

    def make() -> nn.Module:
        made = models.dit(layers=1)
        made.register_buffer("table", torch.arange(3.0), persistent=False)
        return made

    made = empty_model(make, Checkpoint(sharded(module, tmp_path / "model")))
    assert torch.equal(made.table, torch.arange(3.0))
    assert not any(made.training for made in made.modules())
