"""A bundle runs one thing at a time, and says so to whoever comes then."""

import threading
from pathlib import Path

import numpy as np
import pytest

from ditc.runtime import Bundle
from ditc.runtime.errors import EngineError

from .bundles import arrays_for, write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_bundle(tmp_path / "bundle"), threads=1)


def test_nothing_runs_within_a_generation(bundle: Bundle) -> None:
    expected, refused = bundle.generate(seed=3), []

    def again(*_: object) -> None:
        for run in (lambda: bundle.generate(seed=4), lambda: bundle.step(0, **arrays_for(0))):
            with pytest.raises(EngineError, match="running already, in another thread or around"):
                run()
            refused.append(run)

    assert np.array_equal(bundle.generate(seed=3, callback=again), expected)
    assert len(refused) == 2 * bundle.steps


def test_another_thread_is_refused(bundle: Bundle) -> None:
    expected, errors = bundle.generate(seed=3), []

    def elsewhere() -> None:
        try:
            bundle.step(0, **arrays_for(0))
        except EngineError as error:
            errors.append(str(error))

    def meanwhile(*_: object) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    assert np.array_equal(bundle.generate(seed=3, callback=meanwhile), expected)
    assert len(errors) == bundle.steps
    assert all("open it once for each that runs at a time" in error for error in errors)


def test_what_failed_leaves_it_free(bundle: Bundle) -> None:
    expected = bundle.generate(seed=3)

    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle.generate(seed=4, callback=stop)
    with pytest.raises(EngineError, match="is missing"):
        bundle.step(0)
    assert np.array_equal(bundle.generate(seed=3), expected)


def test_one_bundle_opened_twice_runs_within_itself(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle.open(tmp_path / "bundle", threads=1)
    expected = [bundle.generate(seed=seed) for seed in (3, 4)]
    inner = []

    def meanwhile(*_: object) -> None:
        inner.append(other.generate(seed=4))

    assert np.array_equal(bundle.generate(seed=3, callback=meanwhile), expected[0])
    assert all(np.array_equal(found, expected[1]) for found in inner)
