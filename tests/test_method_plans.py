"""Plans that show every method: in turn, and drawn."""

from collections import Counter

from ditc.passes import Method, Window
from ditc.tools.method_plans import SPARING, drawn_methods, each_method

from .samples import sample

WINDOW = Window(4, 2)


def test_each_method_follows_a_full_step() -> None:
    program = sample("small", "cond-first").program
    plan = each_method(program, SPARING, WINDOW)
    rows = [{str(method) for method in row.values()} for row in plan.cells]
    assert rows[::2] == [{"full"}] * 4
    assert rows[1::2] == [{name} for name in SPARING]
    assert set(plan.windows.values()) == {WINDOW}
    assert len(each_method(program, ("ast",)).cells) == 2


def test_without_halves_none_shares_them() -> None:
    program = sample("small", None).program
    assert [set(row.values()) for row in each_method(program).cells[1::2]] == [
        {Method.WA_RS},
        {Method.AST},
    ]
    drawn = drawn_methods(program, 40, WINDOW)
    assert not any(method.shares_cfg for row in drawn.cells for method in row.values())


def test_half_of_what_is_drawn_is_ast() -> None:
    program = sample("small", "cond-first").program
    plan = drawn_methods(program, 400, WINDOW)
    counts = Counter(method for row in plan.cells[1:] for method in row.values())
    total = sum(counts.values())
    assert set(plan.cells[0].values()) == {Method.FULL}
    assert counts.keys() == set(Method)
    spread = 4 * (0.25 / total) ** 0.5  # four standard deviations of so many draws
    assert abs(counts[Method.AST] / total - 5 / 9) < spread
    assert plan == drawn_methods(program, 400, WINDOW)
    assert plan != drawn_methods(program, 400, WINDOW, seed=1)
