"""The paths of the root that a new root gets: the key `keep`."""

from __future__ import annotations

import pytest

from kimbox.spec import rules
from kimbox.spec.nodes import Fault


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("home", "not an absolute path"),
        ("/home/", "not in its simplest form"),
        ("/persistent/x", "not on the root"),
        ("/usr", "comes with the image"),
        ("/home/$(id)", "characters that are not allowed"),
    ],
)
def test_a_path_that_no_new_root_gets(path: str, words: str) -> None:
    with pytest.raises(Fault) as caught:
        rules.kept_path(path)
    assert words in caught.value.message
    assert "/home" == rules.kept_path("/home")
