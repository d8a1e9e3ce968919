import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ditc.tools import glyphs, train_demo
from ditc.tools.train_demo import Options, State, train


def tiny(steps: int = 4, **given: Any) -> Options:
    return Options(**({"steps": steps, "batch": 2, "layers": 1, "heads": 2, "head_dim": 8} | given))


def same_weights(first: State, second: State) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and all(
        torch.equal(value, second.ema[name]) for name, value in first.ema.items()
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_two_steps_train(tmp_path: Path, bf16: bool) -> None:
    state = train(tiny(steps=2, bf16=bf16), tmp_path)
    assert state.step == 2
    assert not same_weights(state, State(tiny(), "cpu"))
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    # The model starts at a velocity of zero: the loss is that of noise minus image, 1 + about 0.9.
    assert lines[0]["loss"] == pytest.approx(1.9, abs=0.15)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    real = train_demo.train_step

    def step_then_signal(state: State) -> float:
        loss = real(state)
        if state.step == steps:
            signal.raise_signal(signal.SIGTERM)
        return loss

    monkeypatch.setattr(train_demo, "train_step", step_then_signal)


def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(steps=6), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        stopped = train(tiny(steps=6), tmp_path / "parts")
    assert stopped.step == 3
    resumed = train(tiny(steps=6), tmp_path / "parts")
    assert resumed.step == 6
    assert same_weights(whole, resumed)
    assert not same_weights(whole, stopped)


def test_finished_run_changes_nothing_when_started_again(tmp_path: Path) -> None:
    first = train(tiny(steps=2), tmp_path)
    assert same_weights(first, train(tiny(steps=2), tmp_path))


def test_end_may_move_but_the_model_may_not(tmp_path: Path) -> None:
    train(tiny(steps=2), tmp_path)
    assert train(tiny(steps=3), tmp_path).step == 3
    with pytest.raises(ValueError, match="batch=2, not 3"):
        train(tiny(steps=4, batch=3), tmp_path)


def test_interrupted_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = train(tiny(steps=2), tmp_path)

    def half_written(_tensors: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train_demo, "save_file", half_written)
        with pytest.raises(OSError, match="no space"):
            train(tiny(steps=3), tmp_path)
    back = State(tiny(), "cpu")
    back.load(tmp_path / "checkpoint.safetensors")
    assert back.step == 2
    assert same_weights(old, back)


def test_batch_drops_labels_for_whole_samples() -> None:
    images, noise, times, labels = train_demo.draw_batch(tiny(batch=2000), 0)
    assert images.shape == noise.shape == (2000, 1, 32, 32)
    # Binomial with p = 0.1: five standard deviations are 0.034.
    assert (labels == glyphs.NULL_CLASS).float().mean() == pytest.approx(0.1, abs=0.034)
    # The median of sigmoid(n) is 1/2.
    assert (times < 0.5).float().mean() == pytest.approx(0.5, abs=0.056)


def test_learning_rate_warms_up_holds_and_decays_to_zero() -> None:
    options = tiny()
    rate = train_demo.learning_rate
    assert rate(options, 0, 0.0) == pytest.approx(options.learning_rate / 100)
    assert rate(options, 500, 0.7) == pytest.approx(options.learning_rate)
    assert rate(options, 800, 0.85) == pytest.approx(options.learning_rate / 2)
    assert rate(options, 999, 1.0) == 0


def test_label_dropping_inside_the_model_is_off() -> None:
    model = State(tiny(), "cpu").model
    assert not any(module.training for module in model.modules())


def test_an_end_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--minutes"):
        Options()
    with pytest.raises(SystemExit) as stop:
        train_demo.main(["--work-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "--steps" in capsys.readouterr().err
