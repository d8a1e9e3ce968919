"""Errors of an export name the model's own line."""

import torch
from torch import nn

from ditc.passes.exporting import traced_line


def test_the_innermost_line_of_the_model_is_told() -> None:
    trace = (
        '  File "/models/net.py", line 7, in forward\n    return self.inner(x)\n'
        '  File "/models/inner.py", line 12, in forward\n    return nn.functional.relu(x)\n'
        f'  File "{nn.functional.__file__}", line 1, in relu\n    return torch.relu(x)\n'
    )
    assert traced_line(trace) == " (/models/inner.py:12 in forward)"


def test_nothing_is_told_where_no_line_is_the_models() -> None:
    assert traced_line(f'  File "{torch.__file__}", line 1, in call\n') == ""
    assert traced_line(None) == ""
    assert traced_line("relu") == ""
