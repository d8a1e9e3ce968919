"""Sessions and operators on a GPU."""

import pytest
import torch

from ditc.passes import Plan, TorchSession, Window, capture, schedule, windowed_attention
from ditc.passes.moving import device_of
from ditc.passes.window_kernel import runs
from ditc.tools.gpu_models import Denoiser, ModelShape, arguments, seeded

pytestmark = pytest.mark.gpu

SHAPE = ModelShape(layers=2, width=64, heads=2, tokens=90, text_tokens=7, batch=2)


def test_a_model_captured_on_the_gpu_runs_there() -> None:
    module = seeded(Denoiser(SHAPE)).cuda()
    program = capture(module, arguments(SHAPE, 0, torch.float32, "cuda"), cfg="cond-first")
    assert device_of(program).type == "cuda"
    session = TorchSession(schedule(program, Plan.uniform(program, 2, "wa-rs")))
    for step in range(2):
        given = arguments(SHAPE, 0, torch.float32, "cuda")  # window plus residual is full attention
        with torch.no_grad():
            expected = module(**given)
        error = (session(step, **given) - expected).abs().max() / expected.abs().max()
        assert float(error) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_operator_runs_the_kernel_on_the_gpu(dtype: torch.dtype) -> None:
    """At a size where many programs run at once."""
    parts = [torch.randn(2, 16, 4096, 72, device="cuda", dtype=dtype) for _ in range(3)]
    assert runs(parts[0])
    found = windowed_attention(*parts, Window(512)).float()
    expected = windowed_attention(*(part.double() for part in parts), Window(512)).float()
    limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6}[dtype]
    assert float((found - expected).abs().max() / expected.abs().max()) <= limit
