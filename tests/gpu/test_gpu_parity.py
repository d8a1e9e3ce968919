"""What runs on a GPU beside the same schedule in fp32 on the CPU: see `ditc.tools.gpu_parity`."""

import pytest

from ditc.tools.gpu_entries import AbsentError
from ditc.tools.gpu_parity import BACKENDS, TOLERANCES, Case, cases, error_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_parity_with_the_cpu(backend: str, case: Case) -> None:
    try:
        error = error_of(backend, case, "cuda")
    except AbsentError as absent:
        pytest.skip(f"waits for what isn't here: {absent}")
    assert error <= TOLERANCES[case.dtype]
