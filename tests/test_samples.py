"""How many samples a pipeline makes at once."""

from pathlib import Path

import pytest

from ditc.runtime.errors import DitcError
from ditc.tools.cli import main
from ditc.tools.samples import check_samples, with_samples

from .commands import Capture, fails, pipeline
from .samples import sample


class ByPrompt:
    def __call__(self, prompt: object, num_images_per_prompt: int = 1) -> None: ...


class ByLabel:
    def __call__(self, class_labels: list[int]) -> None: ...


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"prompt": "a cat"}, {"prompt": "a cat", "num_images_per_prompt": 4}),
        ({"prompt": ["a", "b"]}, {"prompt": ["a", "b"], "num_images_per_prompt": 2}),
        ({"prompt": ["a", "b", "c"]}, {"prompt": ["a", "b", "c"]}),
        ({"prompt": "a", "num_images_per_prompt": 2}, {"prompt": "a", "num_images_per_prompt": 2}),
    ],
)
def test_prompts_are_repeated(call: dict[str, object], expected: dict[str, object]) -> None:
    assert with_samples(ByPrompt(), call, 4) == expected


def test_labels_are_the_users() -> None:
    assert with_samples(ByLabel(), {"class_labels": [7]}, 4) == {"class_labels": [7]}


@pytest.mark.parametrize(("cfg", "found"), [("cond-first", 2), ("uncond-first", 2), (None, 4)])
def test_another_number_is_refused(cfg: str | None, found: int) -> None:
    program = sample("small", cfg).program
    assert program.latents.shape[0] == 4
    check_samples("m", program, None)
    check_samples("m", program, found)
    with pytest.raises(DitcError, match=f"model m: the call makes {found} at once, 3 were asked"):
        check_samples("m", program, 3)


def test_a_pipeline_searched_by_several_samples(tmp_path: Path, capsys: Capture) -> None:
    pipeline().save_pretrained(tmp_path / "pipe")
    command = ["search", str(tmp_path / "pipe"), "--steps", "2", "-o", str(tmp_path / "plan.json")]
    command += ["--search", "local", "--calibration", "2", "--call"]
    assert "1 at once, 2 were asked for" in fails(capsys, *command, '{"class_labels": [7]}')
    assert not (tmp_path / "plan.json").exists()
    assert main([*command, '{"class_labels": [7, 8]}']) == 0
    assert '"samples": 2' in (tmp_path / "plan.json").read_text()
