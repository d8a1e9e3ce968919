"""Numbers and names in words."""

from ditc.tools.report_plan import titled
from ditc.tools.report_words import byte_size, label_parts, milliseconds, quantity, site_pattern


def test_quantities_have_three_digits() -> None:
    numbers = (0, 999, 1000, 12_345, 1_234_567, 999_000_000_000, 4e15)
    expected = ["0", "999", "1.00 k", "12.3 k", "1.23 M", "999 G", "4000 T"]
    assert [quantity(number) for number in numbers] == expected
    assert [quantity(number) for number in (9_994, 9_996, 99_960, 999_499, 999_500)] == [
        "9.99 k",
        "10.0 k",
        "100 k",
        "999 k",
        "1.00 M",
    ]
    assert [milliseconds(ms) for ms in (0.004, 9.99, 9.996, 99.97)] == [
        "0.00 ms",
        "9.99 ms",
        "10.0 ms",
        "100 ms",
    ]
    assert byte_size(999) == "999 B"
    assert byte_size(8_759_576) == "8.76 MB"


def test_labels_are_split_where_names_differ() -> None:
    assert label_parts(["a.0.attn", "a.1.attn"])[1] == [("a.", True), ("1", False), (".attn", True)]
    assert label_parts(["a.0", "b.1"])[0] == [("a.0", False)]
    assert label_parts(["a.0.x", "a"]) == [[("a.0.x", False)], [("a", False)]]
    assert label_parts(["a.0"]) == [[("a.0", False)]]
    assert site_pattern(["a.0.attn", "a.1.attn"]) == "a.*.attn"
    assert site_pattern(["a.0", "b.1"]) is None


def test_searches_are_told_as_what_they_are() -> None:
    assert titled("greedy") == "greedy search"
    assert titled("greedy, on other weights") == "greedy search on other weights"
