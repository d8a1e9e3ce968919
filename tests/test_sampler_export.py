"""Tables read off diffusers schedulers, against those schedulers."""

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from ditc.export.probe import Probe, prepared
from ditc.export.sampler import Scheduler, _check_run, sampler_table
from ditc.runtime.errors import LoweringError
from ditc.runtime.sampler import SamplerState, SamplerTable

# Schedulers make numpy arrays of tensors in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (1, 3, 5, 9)
STEPS = (1, 2, 5, 20, 50)
# Of the largest latent of the run so far: what a float32 scheduler itself rounds to.
TOLERANCE = 1e-5
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
ALL = ("epsilon", "v_prediction", "sample")


def variants(
    label: str,
    name: str,
    config: Mapping[str, object],
    predictions: tuple[str, ...] = ALL,
    history: int = 1,
    **step_kwargs: float,
) -> list[object]:
    return [
        pytest.param(
            name, {**config, "prediction_type": kind}, step_kwargs, history, id=f"{label}-{kind}"
        )
        for kind in predictions
    ]


CASES = [
    *variants("ddim", "DDIMScheduler", {"clip_sample": False}),
    *variants("ddim-eta", "DDIMScheduler", {"clip_sample": False}, eta=0.7),
    *variants("ddim-zero", "DDIMScheduler", {"clip_sample": False, **ZERO_SNR}, ALL[1:]),
    *variants("ddpm", "DDPMScheduler", {"clip_sample": False}),
    *variants("ddpm-l", "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    *variants("euler", "EulerDiscreteScheduler", {}),
    *variants("euler-karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}, ALL[:1]),
    *variants("euler-churn", "EulerDiscreteScheduler", {}, ALL[:1], s_churn=4.0),
    *variants("euler-a", "EulerAncestralDiscreteScheduler", {}, ALL[:2]),
    *variants("dpm", "DPMSolverMultistepScheduler", DPM, ALL, 2),
    *variants("dpm-3", "DPMSolverMultistepScheduler", {**DPM, "solver_order": 3}, ALL[:1], 3),
    *variants(
        "dpm-karras", "DPMSolverMultistepScheduler", {**DPM, "use_karras_sigmas": True}, ALL, 2
    ),
    *variants(
        "dpm-no-low",
        "DPMSolverMultistepScheduler",
        {**DPM, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        ALL[:1],
        2,
    ),
    *variants("dpm-flow", "DPMSolverMultistepScheduler", {**DPM, **FLOW}, ("flow_prediction",), 2),
    *variants("dpm-sde", "DPMSolverMultistepScheduler", SDE, ALL, 2),
    *variants("unipc", "UniPCMultistepScheduler", {}, ALL, 3),
    *variants("unipc-3", "UniPCMultistepScheduler", {"solver_order": 3}, ALL[:1], 4),
    *variants("unipc-karras", "UniPCMultistepScheduler", {"use_karras_sigmas": True}, ALL[:1], 3),
    *variants("unipc-flow", "UniPCMultistepScheduler", FLOW, ("flow_prediction",), 3),
    *variants("deis", "DEISMultistepScheduler", {}, ALL[:1], 2),
    pytest.param("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}, 1, id="flow"),
    pytest.param(
        "FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, {}, 1, id="flow-k"
    ),
    pytest.param(
        "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}, 1, id="flow-sde"
    ),
]


def make(name: str, **config: object) -> Scheduler:
    return getattr(diffusers, name)(**config)


def disagreement(
    scheduler: Scheduler, table: SamplerTable, step_kwargs: Mapping[str, object]
) -> float:
    """Run a fresh nonlinear model by scheduler and by table; return the largest relative error."""
    random = np.random.default_rng(7)
    mix = np.linalg.qr(random.standard_normal((9, 9)))[0].astype(np.float32)

    def model(x: np.ndarray, timestep: float) -> np.ndarray:
        return np.sin(x @ mix / 2 + np.float32(timestep / 1000))

    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator, again = (torch.Generator().manual_seed(7) for _ in range(2))
    kwargs = dict(step_kwargs)
    if "generator" in inspect.signature(scheduler.step).parameters:
        kwargs["generator"] = generator
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    x = random.standard_normal(SHAPE).astype(np.float32) * np.float32(table.init_noise_scale)
    expected, state, worst, largest = torch.from_numpy(x), SamplerState(table), 0.0, 0.0
    for k, timestep in enumerate(scheduler.timesteps):
        largest = max(largest, float(expected.abs().max()))
        scaled = scale(expected, timestep)
        output = torch.from_numpy(model(scaled.numpy(), float(timestep)))
        expected = scheduler.step(output, timestep, expected, return_dict=False, **kwargs)[0]
        noise = None
        if not torch.equal(generator.get_state(), again.get_state()):
            noise = randn_tensor(SHAPE, generator=again, dtype=torch.float32).numpy()
        output_here = model(state.model_input(k, x), table.timesteps[k])
        x = state.advance(k, x, output_here, noise)
        largest = max(largest, float(expected.abs().max()))
        worst = max(worst, float(np.abs(x - expected.numpy()).max()) / largest)
    return worst


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "config", "step_kwargs", "history"), CASES)
def test_table_runs_as_its_scheduler(
    name: str, config: dict[str, object], step_kwargs: dict[str, float], history: int, steps: int
) -> None:
    scheduler = make(name, **config)
    table = sampler_table(scheduler, steps, step_kwargs=step_kwargs)
    scheduler.set_timesteps(steps)
    assert table.scheduler == name
    assert table.timesteps == tuple(scheduler.timesteps.double().tolist())
    assert table.history == history if steps >= 20 else table.history <= history
    assert disagreement(scheduler, table, step_kwargs) <= TOLERANCE
    text = json.dumps(table.to_json(), sort_keys=True)
    again = SamplerTable.from_json(json.loads(text))
    assert again == table
    assert json.dumps(again.to_json(), sort_keys=True) == text


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("HeunDiscreteScheduler", {}),
        ("FlowMatchHeunDiscreteScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("LCMScheduler", {}),
    ],
)
def test_schedulers_that_are_linear_in_their_own_way(name: str, config: dict[str, object]) -> None:
    scheduler = make(name, **config)
    scheduler.set_timesteps(8)
    table = sampler_table(scheduler, len(scheduler.timesteps))
    assert disagreement(scheduler, table, {}) <= TOLERANCE


def test_ddim_is_the_papers_equation_12() -> None:
    scheduler = make("DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    table = sampler_table(scheduler, 4)
    alphas = scheduler.alphas_cumprod.double().numpy()
    assert table.timesteps == (750.0, 500.0, 250.0, 0.0)
    for k, t in enumerate((750, 500, 250, 0)):
        now, after = alphas[t], alphas[t - 250] if t else 1.0
        ratio = np.sqrt(after / now)
        shift = np.sqrt(1 - after) - ratio * np.sqrt(1 - now)
        # The scheduler takes its square roots in float32, 2**-24 relative each.
        np.testing.assert_allclose(table.latents[k][0], ratio, rtol=5e-7)
        np.testing.assert_allclose(table.outputs[k][0], shift, rtol=0, atol=5e-7 * ratio)
    assert not table.stochastic
    assert table.input_scale == (1.0,) * 4


def test_euler_scales_its_input_and_its_first_latents() -> None:
    scheduler = make("EulerDiscreteScheduler")
    table = sampler_table(scheduler, 6)
    scheduler.set_timesteps(6)
    sigmas = scheduler.sigmas.double().numpy()[:-1]
    np.testing.assert_allclose(table.input_scale, 1 / np.sqrt(sigmas**2 + 1), rtol=1e-6)
    assert table.init_noise_scale == float(scheduler.init_noise_sigma)


def test_stochastic_steps_are_marked() -> None:
    assert sampler_table(make("DDPMScheduler", clip_sample=False), 5).noise[-1] == 0.0
    ddim = make("DDIMScheduler", clip_sample=False)
    assert not sampler_table(ddim, 5).stochastic
    assert all(sampler_table(ddim, 5, step_kwargs={"eta": 1.0}).noise[:-1])


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("ready", [False, True])
def test_the_users_scheduler_and_seed_are_left_alone(name: str, ready: bool) -> None:
    scheduler = make(name)
    if ready:
        scheduler.set_timesteps(5)
    before, seed = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    sampler_table(scheduler, 5)
    assert torch.equal(seed, torch.get_rng_state())
    assert vars(scheduler).keys() == before.keys()
    for key, value in vars(scheduler).items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, before[key]), key


def test_a_scheduler_that_is_set_is_taken_as_it_is() -> None:
    scheduler = make(FLOW_EULER, use_dynamic_shifting=True)
    with pytest.raises(LoweringError, match=r"`mu` must be passed.*call set_timesteps on the"):
        sampler_table(scheduler, 4)
    scheduler.set_timesteps(4, mu=1.15, sigmas=[1.0, 0.7, 0.5, 0.2])
    table = sampler_table(scheduler, 4)
    assert table.timesteps == tuple(scheduler.timesteps.double().tolist())
    assert disagreement(scheduler, table, {}) <= TOLERANCE


def test_custom_timesteps_count_as_set() -> None:
    scheduler = make("DDPMScheduler", clip_sample=False)
    scheduler.set_timesteps(timesteps=[900, 400, 100])
    table = sampler_table(scheduler, 3)
    assert table.timesteps == (900.0, 400.0, 100.0)
    assert disagreement(scheduler, table, {}) <= TOLERANCE


def test_a_run_before_does_not_matter_where_the_schedule_can_be_set_again() -> None:
    fresh, used = make("UniPCMultistepScheduler"), make("UniPCMultistepScheduler")
    used.set_timesteps(5)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for timestep in used.timesteps[:3]:
        x = used.step(x / 2, timestep, x).prev_sample
    assert sampler_table(used, 5) == sampler_table(fresh, 5)
    assert used.step_index == 3


def test_a_run_of_a_schedule_that_cannot_be_set_again_is_refused() -> None:
    scheduler = make(FLOW_EULER)
    scheduler.set_timesteps(sigmas=[1.0, 0.9, 0.1])
    x = torch.ones(SHAPE)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(LoweringError, match=r"is in the middle of a run.*set_timesteps again"):
        sampler_table(scheduler, 3)


def test_another_count_is_refused() -> None:
    scheduler = make("DDIMScheduler", clip_sample=False)
    scheduler.set_timesteps(10)
    with pytest.raises(LoweringError, match="is set to 10 model evaluations, expected 20"):
        sampler_table(scheduler, 20)


def test_more_than_one_evaluation_a_step_is_counted() -> None:
    with pytest.raises(LoweringError, match="evaluates the model 9 times when set to 5 steps"):
        sampler_table(make("HeunDiscreteScheduler"), 5)
    scheduler = make("DDIMScheduler", clip_sample=False)
    scheduler.set_timesteps(1000)
    with pytest.raises(LoweringError, match="is set to 1000 model evaluations, expected 5"):
        sampler_table(scheduler, 5)


def test_unknown_step_kwargs_are_refused() -> None:
    for key in ("et", "generator", "sample"):
        with pytest.raises(LoweringError, match=f"DDIMScheduler.step takes.*'eta'.*not.*'{key}'"):
            sampler_table(make("DDIMScheduler"), 5, step_kwargs={key: 1.0})


def test_what_is_no_scheduler_is_refused() -> None:
    with pytest.raises(LoweringError, match=r"^SimpleNamespace is no diffusers scheduler"):
        sampler_table(SimpleNamespace(), 5)


REFUSED = [
    ("DDIMScheduler", {}, "isn't linear.*its config clip_sample=True.*clip_sample=False"),
    ("DDIMScheduler", {"clip_sample_range": 300.0}, "isn't linear.*1000; its config clip_sample"),
    ("DDPMScheduler", {}, "isn't linear.*its config clip_sample=True"),
    (
        "DDIMScheduler",
        {"clip_sample": False, "thresholding": True},
        "isn't linear.*its config thresholding=True.*thresholding=False",
    ),
    ("UniPCMultistepScheduler", {"thresholding": True}, "isn't linear.*thresholding=True"),
    ("DPMSolverMultistepScheduler", {"thresholding": True}, "isn't linear.*thresholding=True"),
    (
        "DDPMScheduler",
        {"clip_sample": False, "variance_type": "learned"},
        "can't be probed.*its config variance_type='learned' takes the variance from the model",
    ),
    (
        "DPMSolverMultistepScheduler",
        {"variance_type": "learned_range"},
        "can't be probed.*its config variance_type='learned_range' takes the variance",
    ),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "itself returns NaN.*at step 5 of this"),
    ("PNDMScheduler", {}, "evaluates the model 15 times when set to 6 steps, expected 6"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED)
def test_what_a_table_cannot_express_is_refused(
    name: str, config: dict[str, object], message: str
) -> None:
    with pytest.raises(LoweringError, match=f"^{name} {message}") as caught:
        sampler_table(make(name, **config), 6)
    assert "\n" not in str(caught.value)


class Homemade:
    """A scheduler of the reader's own; `rule` is its step."""

    def __init__(self, rule: Callable[..., torch.Tensor]) -> None:
        self.rule = rule
        self.timesteps = torch.arange(3)
        self.past: list[torch.Tensor] = []

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.timesteps = torch.arange(num_inference_steps, 0, -1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        self.past.append(model_output)
        return (self.rule(self, sample, model_output, generator),)


def noise_like(sample: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return randn_tensor(sample.shape, generator=generator, dtype=sample.dtype)


HOMEMADE = {
    "nonlinear": (lambda self, x, m, g: x - m.tanh(), "isn't linear"),
    "bilinear": (lambda self, x, m, g: x + x * m, "isn't linear"),
    "adaptive": (lambda self, x, m, g: x - m / (1 + m.norm()), "isn't linear"),
    "affine": (lambda self, x, m, g: x - m + 1, "answers zeros with up to 1 that is no multiple"),
    "mixing": (lambda self, x, m, g: x - m.roll(1, 1), "isn't linear|disagrees with its table"),
    "global noise": (lambda self, x, m, g: x - m + noise_like(x, None), "answers zeros with"),
    "two draws": (
        lambda self, x, m, g: x - m + noise_like(x, g) * noise_like(x, g),
        "draws other noise than one tensor",
    ),
    "noise times model": (lambda self, x, m, g: x - m * noise_like(x, g), "isn't linear"),
    "long memory": (
        lambda self, x, m, g: x - (self.past[-5] if len(self.past) > 4 else m),
        "looks back more than 4 steps",
    ),
    "raising": (lambda self, x, m, g: x - m[:, 3], "can't be probed, step 0 raised RuntimeError"),
    "infinite": (lambda self, x, m, g: x / (x.new_zeros(())), "itself returns NaN or infinity"),
}


@pytest.mark.parametrize("case", list(HOMEMADE))
def test_non_linearity_is_found_by_numbers(case: str) -> None:
    rule, message = HOMEMADE[case]
    with pytest.raises(LoweringError, match=f"^Homemade.*({message}).*use one such as DDIM"):
        sampler_table(Homemade(rule), 6)


@pytest.mark.parametrize("field", ["latents", "outputs", "noise", "input_scale"])
@pytest.mark.parametrize("k", [0, 2])
def test_the_check_of_a_whole_run_finds_a_wrong_coefficient(field: str, k: int) -> None:
    scheduler = make("EulerAncestralDiscreteScheduler")
    table = sampler_table(scheduler, 5)
    probe = Probe(prepared(scheduler, 5), {})
    _check_run(probe, table)
    value = table.to_json()
    row = value[field]
    assert isinstance(row, list)
    row[k] = [1.05 * row[k][0]] if isinstance(row[k], list) else 1.05 * row[k]
    with pytest.raises(LoweringError, match="disagrees with its table, step"):
        _check_run(probe, SamplerTable.from_json(value))


def test_a_linear_scheduler_of_the_readers_own_is_read() -> None:
    table = sampler_table(Homemade(lambda self, x, m, g: x / 2 - m + noise_like(x, g) / 4), 3)
    assert table.latents == ((0.5,),) * 3
    assert table.outputs == ((-1.0,),) * 3
    np.testing.assert_allclose(table.noise, 0.25, rtol=1e-6)
    assert (table.timesteps, table.init_noise_scale) == ((3.0, 2.0, 1.0), 1.0)
