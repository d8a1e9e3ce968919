"""Open-Sora's denoisers once more, from their checkpoints' tensors: token by token, in fp64.

Follows the published definitions: words that don't count are left out, channels are turned as
complex numbers, and every frame and every place is attended to on its own.
"""

import math
from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]


class Reference:
    """A denoiser as functions of its tensors; one sample at a time."""

    def __init__(self, tensors: Tensors, heads: int, patch: tuple[int, int, int], square: int):
        self.tensors = {name: value.double() for name, value in tensors.items()}
        self.heads, self.patch, self.square = heads, patch, square

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def layers(self, name: str, x: torch.Tensor, first: str, second: str, act) -> torch.Tensor:
        return self.linear(f"{name}.{second}", act(self.linear(f"{name}.{first}", x)))

    def number(self, name: str, value: float) -> torch.Tensor:
        rates = [math.exp(-math.log(10000) * i / 128) for i in range(128)]
        waves = [math.cos(value * rate) for rate in rates]
        waves += [math.sin(value * rate) for rate in rates]
        return self.layers(f"{name}.mlp", torch.tensor(waves).double(), "0", "2", silu)

    def mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.layers(name, x, "fc1", "fc2", gelu)

    def heads_of(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(x.split(x.shape[-1] // self.heads, dim=-1))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = query @ key.T / math.sqrt(query.shape[-1])
        return torch.softmax(scores, dim=-1) @ value

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(len(x)).double()[:, None] * self.tensors["rope.freqs"]
        pairs = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous())
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(pairs).flatten(1)

    def normed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if f"{name}.weight" not in self.tensors:
            return x
        mean = x.square().mean(-1, keepdim=True)
        return x / torch.sqrt(mean + 1e-6) * self.tensors[f"{name}.weight"]

    def attention(self, name: str, x: torch.Tensor, turn: bool, turned_first: bool) -> torch.Tensor:
        parts = self.linear(f"{name}.qkv", x).chunk(3, dim=-1)
        outputs = []
        for query, key, value in zip(*(self.heads_of(part) for part in parts), strict=True):
            pair = []
            for which, part in (("q", query), ("k", key)):
                norm = f"{name}.{which}_norm"
                if turn and turned_first:
                    part = self.normed(norm, self.turned(part))
                elif turn:
                    part = self.turned(self.normed(norm, part))
                else:
                    part = self.normed(norm, part)
                pair.append(part)
            outputs.append(self.attend(*pair, value))
        return self.linear(f"{name}.proj", torch.cat(outputs, dim=-1))

    def cross(self, name: str, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        query = self.heads_of(self.linear(f"{name}.q_linear", x))
        key, value = (
            self.heads_of(part) for part in self.linear(f"{name}.kv_linear", words).chunk(2, dim=-1)
        )
        outputs = [self.attend(*each) for each in zip(query, key, value, strict=True)]
        return self.linear(f"{name}.proj", torch.cat(outputs, dim=-1))

    def patches(self, video: torch.Tensor) -> torch.Tensor:
        """Return `[frames, rows, columns, width]` of `[channels, frames, height, width]`."""
        weight, bias = (self.tensors[f"x_embedder.proj.{kind}"] for kind in ("weight", "bias"))
        f, h, w = (-(-n // p) for n, p in zip(video.shape[1:], self.patch, strict=True))
        pf, ph, pw = self.patch
        whole = torch.zeros(video.shape[0], f * pf, h * ph, w * pw, dtype=torch.float64)
        whole[:, : video.shape[1], : video.shape[2], : video.shape[3]] = video
        out = torch.zeros(f, h, w, len(bias), dtype=torch.float64)
        for i in range(f):
            for j in range(h):
                for k in range(w):
                    cut = whole[:, i * pf : (i + 1) * pf, j * ph : (j + 1) * ph]
                    cut = cut[..., k * pw : (k + 1) * pw]
                    out[i, j, k] = weight.flatten(1) @ cut.flatten() + bias
        return out

    def places(self, rows: int, columns: int, width: int, pixels: float) -> torch.Tensor:
        scale, base = math.sqrt(pixels) / self.square, round(math.sqrt(rows * columns))
        out = torch.zeros(rows, columns, width, dtype=torch.float64)
        quarter = width // 4
        for j in range(rows):
            for k in range(columns):
                for half, place in ((0, k * base / columns), (1, j * base / rows)):
                    for i in range(quarter):
                        angle = place / scale * 10000 ** (-i / quarter)
                        start = half * 2 * quarter
                        out[j, k, start + i] = math.sin(angle)
                        out[j, k, start + quarter + i] = math.cos(angle)
        return out

    def video(self, x: torch.Tensor, time: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
        table = self.tensors["final_layer.scale_shift_table"]
        shift, scale = table[0] + time, table[1] + time
        values = self.linear("final_layer.linear", plain(x) * (1 + scale) + shift)
        frames, rows, columns = x.shape[:3]
        pf, ph, pw = self.patch
        channels = values.shape[-1] // (pf * ph * pw)
        out = torch.zeros(channels, frames * pf, rows * ph, columns * pw, dtype=torch.float64)
        for i in range(frames):
            for j in range(rows):
                for k in range(columns):
                    cell = values[i, j, k].reshape(pf, ph, pw, channels).permute(3, 0, 1, 2)
                    out[
                        :,
                        i * pf : (i + 1) * pf,
                        j * ph : (j + 1) * ph,
                        k * pw : (k + 1) * pw,
                    ] = cell
        return out[:, : sizes[0], : sizes[1], : sizes[2]]

    def space(self, name: str, x: torch.Tensor, turned_first: bool) -> torch.Tensor:
        frames = [self.attention(name, f.flatten(0, 1), False, turned_first) for f in x]
        return torch.stack(frames).reshape(x.shape)

    def over_time(self, name: str, x: torch.Tensor, turned_first: bool) -> torch.Tensor:
        out = torch.zeros_like(x)
        for j in range(x.shape[1]):
            for k in range(x.shape[2]):
                out[:, j, k] = self.attention(name, x[:, j, k], True, turned_first)
        return out

    def rest(self, name: str, x: torch.Tensor, words: torch.Tensor, mods) -> torch.Tensor:
        shift, scale, gate = mods
        x = x + self.cross(f"{name}.cross_attn", x.flatten(0, 2), words).reshape(x.shape)
        return x + gate * self.mlp(f"{name}.mlp", plain(x) * (1 + scale) + shift)


def first_version(ref: Reference, depth: int, legacy: bool, sample: Mapping[str, object]):
    """Return what STDiT2 makes of one sample."""
    time = ref.number("t_embedder", sample["timestep"])
    sizes = [ref.number("csize_embedder", sample[name]) for name in ("height", "width")]
    shape = torch.cat([*sizes, ref.number("ar_embedder", sample["ar"])])
    length = ref.number("fl_embedder", sample["num_frames"])
    length = length + ref.number("fps_embedder", sample["fps"])
    space = ref.linear("t_block.1", silu(time + shape)).reshape(6, -1)
    frames = ref.linear("t_block_temp.1", silu(time + length)).reshape(3, -1)
    words = ref.mlp("y_embedder.y_proj", sample["words"].double())
    x = ref.patches(sample["video"].double())
    x = x + ref.places(*x.shape[1:], sample["height"] * sample["width"])
    for i in range(depth):
        name = f"blocks.{i}"
        mods = ref.tensors[f"{name}.scale_shift_table"] + space
        told = ref.tensors[f"{name}.scale_shift_table_temporal"] + frames
        x = x + mods[2] * ref.space(f"{name}.attn", plain(x) * (1 + mods[1]) + mods[0], legacy)
        x = x + told[2] * ref.over_time(
            f"{name}.attn_temp", plain(x) * (1 + told[1]) + told[0], legacy
        )
        x = ref.rest(name, x, words, mods[3:])
    return ref.video(x, time, sample["video"].shape[1:])


def second_version(ref: Reference, depth: int, sample: Mapping[str, object]):
    """Return what STDiT3 makes of one sample."""
    time = ref.number("t_embedder", sample["timestep"]) + ref.number("fps_embedder", sample["fps"])
    told = ref.linear("t_block.1", silu(time)).reshape(6, -1)
    words = ref.mlp("y_embedder.y_proj", sample["words"].double())
    x = ref.patches(sample["video"].double())
    x = x + ref.places(*x.shape[1:], sample["height"] * sample["width"])
    for i in range(depth):
        for kind, attend in (("spatial", ref.space), ("temporal", ref.over_time)):
            name = f"{kind}_blocks.{i}"
            mods = ref.tensors[f"{name}.scale_shift_table"] + told
            attended = attend(f"{name}.attn", plain(x) * (1 + mods[1]) + mods[0], False)
            x = ref.rest(name, x + mods[2] * attended, words, mods[3:])
    return ref.video(x, time, sample["video"].shape[1:])


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
