"""How lists, numbers and errors are said in messages."""

import pytest

from jumpout_export.text import count, first_line, joined, some_of


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (joined([]), ""),
        (joined(["a", "b"]), "a; b"),
        (joined(list("abc"), most=2), "a; b; and 1 more"),
        (some_of([]), "nothing"),
        (some_of(["a", "b"]), "a, b"),
        (some_of(list("abcdefg")), "a, b, c, d, e and 2 more"),
        (count(1, "layer"), "1 layer"),
        (count(0, "layer"), "0 layers"),
        (count(4096, "sample"), "4,096 samples"),
        (first_line(ValueError("one\ntwo")), "one"),
        (first_line(ValueError()), "ValueError"),
    ],
)
def test_a_message_says(said, text):
    assert said == text
