"""Train the demo model: `python -m ditc.tools.train_demo --work-dir DIR --minutes 60`.

A class-conditional diffusion transformer on glyphs, trained as a rectified flow: with noise e and
s = sigmoid(n), n ~ N(0, 1), the model sees x_s = (1 - s) x + s e at timestep 1000 s and learns the
velocity e - x. Run again with the same work dir, it goes on from the last checkpoint.
`ditc.tools.export_demo` turns a checkpoint into a model folder.
"""

import argparse
import json
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .argument_types import positive
from .glyphs import (
    CLASSES,
    CLASSIFIER,
    IMAGE_SIZE,
    NULL_CLASS,
    render_batch,
    train_classifier,
)

__all__ = ["CHECKPOINT", "Options", "State", "build_model", "main", "train"]

CHECKPOINT = "checkpoint.safetensors"
_STREAM = 1_000_003  # keeps the random streams of neighbouring seeds apart
_WARM_UP_STEPS = 100
_DECAY_SHARE = 0.3
_CFG_DROP = 0.1


@dataclass(frozen=True)
class Options:
    """What decides the result of a run; the end may move when a run is resumed."""

    steps: int | None = None
    minutes: float | None = None
    batch: int = 64
    layers: int = 6
    heads: int = 4
    head_dim: int = 32
    learning_rate: float = 2e-3
    ema_decay: float = 0.999
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("training needs an end: give --steps, --minutes or both")


def build_model(options: Options) -> DiTTransformer2DModel:
    """A fresh denoiser, float32; its gates and output start at zero, as in the DiT paper."""
    torch.manual_seed(options.seed)
    model = DiTTransformer2DModel(
        num_attention_heads=options.heads,
        attention_head_dim=options.head_dim,
        in_channels=1,
        out_channels=1,
        num_layers=options.layers,
        sample_size=IMAGE_SIZE,
        patch_size=2,
        num_embeds_ada_norm=len(CLASSES),
        norm_type="ada_norm_zero",
    )
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    nn.init.zeros_(model.proj_out_2.weight)
    nn.init.zeros_(model.proj_out_2.bias)
    # Eval mode throughout: in train mode each block would drop class labels on its own.
    return model.eval()


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file whole or not at all: an interrupted write leaves the old one as it was."""
    partial = path.with_suffix(".partial")
    save_file(
        {name: value.contiguous().cpu() for name, value in tensors.items()}, partial, metadata
    )
    partial.replace(path)


class State:
    """Weights, their moving average, the optimizer, and how far training has come."""

    def __init__(self, options: Options, device: str) -> None:
        self.options = options
        self.device = device
        self.model = build_model(options).to(device)
        self.ema = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
        )
        self.step = 0
        self.seconds = 0.0

    def progress(self) -> float:
        """The share of the run that is done, by steps or by time, whichever ends it first."""
        by_steps = self.step / self.options.steps if self.options.steps else 0.0
        by_time = self.seconds / 60 / self.options.minutes if self.options.minutes else 0.0
        return max(by_steps, by_time)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to one file."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.model.named_parameters():
            tensors[f"model.{name}"] = weight.detach()
            tensors[f"ema.{name}"] = self.ema[name]
            for key, value in self.optimizer.state[weight].items():
                tensors[f"optimizer.{key}.{name}"] = value
        progress = {"step": self.step, "seconds": self.seconds, "options": asdict(self.options)}
        _save(tensors, path, {"progress": json.dumps(progress)})

    def load(self, path: Path) -> None:
        """Go back to what `save` wrote; refuses another model, data or seed."""
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        ends = ("steps", "minutes")
        for name, value in asdict(self.options).items():
            if name not in ends and progress["options"][name] != value:
                raise ValueError(
                    f"{path} was trained with {name}={progress['options'][name]}, not {value}: "
                    "use the same options or another --work-dir"
                )
        tensors = load_file(path, device=self.device)
        for name, weight in self.model.named_parameters():
            weight.data.copy_(tensors[f"model.{name}"])
            self.ema[name].copy_(tensors[f"ema.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"optimizer.{key}.{name}"]
                self.optimizer.state[weight][key] = value.cpu() if key == "step" else value
        self.step, self.seconds = progress["step"], progress["seconds"]


def learning_rate(options: Options, step: int, progress: float) -> float:
    """Warm up, hold, then decay to zero over the last part of the run."""
    warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
    decay = min(1.0, max(0.0, 1.0 - progress) / _DECAY_SHARE)
    return options.learning_rate * warm_up * decay


def draw_batch(options: Options, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a step trains on, from the seed and the step alone.

    Returns images and noise `[batch, 1, 32, 32]`, times `[batch]` in (0, 1) and labels `[batch]`
    with a tenth of them replaced by the null class.
    """
    generator = torch.Generator().manual_seed(options.seed * _STREAM + step)
    labels = torch.randint(len(CLASSES), (options.batch,), generator=generator)
    images = render_batch(labels, generator)
    noise = torch.randn(images.shape, generator=generator)
    times = torch.randn(options.batch, generator=generator).sigmoid()
    dropped = torch.rand(options.batch, generator=generator) < _CFG_DROP
    return images, noise, times, labels.masked_fill(dropped, NULL_CLASS)


def train_step(state: State) -> float:
    """One step of AdamW and of the moving average; returns the loss."""
    options = state.options
    images, noise, times, labels = (
        part.to(state.device) for part in draw_batch(options, state.step)
    )
    weight = times[:, None, None, None]
    noisy = (1 - weight) * images + weight * noise
    with torch.autocast(torch.device(state.device).type, torch.bfloat16, enabled=options.bf16):
        velocity = state.model(noisy, timestep=1000 * times, class_labels=labels).sample
    loss = functional.mse_loss(velocity.float(), noise - images)
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(options, state.step, state.progress())
    state.optimizer.step()
    decay = min(options.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.values()), list(state.model.parameters()), 1 - decay)
    state.step += 1
    return loss.item()


def prepare_bf16(model: DiTTransformer2DModel) -> None:
    """Keep the residual stream float32 under autocast, and take attention that trains faster."""
    model.pos_embed.register_forward_hook(lambda _module, _args, output: output.float())
    for block in model.transformer_blocks:
        block.attn1.set_processor(PlainAttention())


class PlainAttention:
    """Self-attention as two matrix products: on CPUs its backward pass is twice as fast."""

    def __call__(self, attention: Attention, hidden_states: Tensor, **_: object) -> Tensor:
        """Map `[batch, tokens, width]` to the same shape."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        scores = (query * attention.scale) @ key.transpose(-1, -2)
        with torch.autocast(scores.device.type, enabled=False):
            shares = scores.softmax(-1)
        output = (shares @ value).transpose(1, 2).flatten(2)
        projected: Tensor = attention.to_out[0](output)
        return projected


def train(
    options: Options, work_dir: Path, device: str = "cpu", checkpoint_minutes: float = 3.0
) -> State:
    """Train, or go on training, until the end the options set or an interrupt; then checkpoint."""
    work_dir.mkdir(parents=True, exist_ok=True)
    state = State(options, device)
    checkpoint = work_dir / CHECKPOINT
    if checkpoint.exists():
        state.load(checkpoint)
    if options.bf16:
        prepare_bf16(state.model)
    stopped: list[int] = []
    handlers = {
        number: signal.signal(number, lambda caught, _frame: stopped.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    saved = time.monotonic()
    try:
        with (
            (work_dir / "loss.jsonl").open("a") as log,
            tqdm(initial=state.step, total=options.steps, mininterval=10) as bar,
        ):
            while state.progress() < 1 and not stopped:
                start = time.monotonic()
                loss = train_step(state)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {state.step}")
                state.seconds += time.monotonic() - start
                rate = state.optimizer.param_groups[0]["lr"]
                line = {"step": state.step, "loss": loss, "lr": rate, "seconds": state.seconds}
                log.write(json.dumps(line) + "\n")
                bar.update()
                if time.monotonic() - saved > checkpoint_minutes * 60:
                    log.flush()
                    state.save(checkpoint)
                    saved = time.monotonic()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    state.save(checkpoint)
    return state


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the classifier if there is none yet, then the denoiser."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.train_demo",
        description="Train the demo model. The same command again goes on from the checkpoint.",
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints and loss.jsonl")
    parser.add_argument("--steps", type=positive, help="end after so many steps in all")
    parser.add_argument("--minutes", type=float, help="end after so much training time in all")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(arguments)
    if given.steps is None and given.minutes is None:
        parser.error("training needs an end: give --steps, --minutes or both")
    classifier = given.work_dir / CLASSIFIER
    if not classifier.exists():
        given.work_dir.mkdir(parents=True, exist_ok=True)
        _save(train_classifier(seed=given.seed).state_dict(), classifier)
    options = Options(steps=given.steps, minutes=given.minutes, batch=given.batch, seed=given.seed)
    train(options, given.work_dir, given.device)


if __name__ == "__main__":
    main()
