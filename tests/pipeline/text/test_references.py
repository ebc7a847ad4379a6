"""References to halves of characters."""

import pytest
from conan_embedding.pipeline.text.references import join_halves


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("a&#55357;&#56832;b", "a😀b"),
        ("&#xD83D;&#xDE00;&#55357;&#xde00;", "😀😀"),
        ("&#55357;&#56832", "&#55357;&#56832"),
        ("&#56832;&#55357;", "&#56832;&#55357;"),
        ("&#55357;x&#56832;", "&#55357;x&#56832;"),
        ("&#20013;&#25991; &amp;", "&#20013;&#25991; &amp;"),
        ("", ""),
    ],
)
def test_two_halves_are_a_character(text: str, joined: str) -> None:
    assert join_halves(text) == joined
