from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import tiny_manifest
from hypothesis import given
from hypothesis import strategies as st

from depth_prior_ros.bundle.text import describe_manifest

WORDS = st.text("abcdefghij", min_size=1, max_size=8)
VALUES = st.recursive(
    WORDS | st.integers(0, 10**6) | st.booleans(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4)
        | st.dictionaries(WORDS, inner, min_size=1, max_size=4)
    ),
    max_leaves=12,
)


def metrics_of(values: dict[str, Any]) -> str:
    """What is said of a manifest's metrics."""
    manifest = tiny_manifest().model_copy(update={"metrics": values})
    text = describe_manifest(manifest, Path("somewhere"), {})
    return text.split("\nmetrics\n")[1].split("\n\nfiles")[0]


def leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [str(k) for k in value] + [leaf for v in value.values() for leaf in leaves(v)]
    if isinstance(value, list):
        return [leaf for v in value for leaf in leaves(v)]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


@given(st.dictionaries(WORDS, VALUES, min_size=1, max_size=4))
def test_everything_is_said_and_nothing_as_python_writes_it(values: dict[str, Any]) -> None:
    text = metrics_of(values)
    for sign in "[]{}'":
        assert sign not in text
    words = text.replace(",", " ").replace(":", " ").split()
    assert sorted(word for word in words if word != "-") == sorted(leaves(values))


def test_lists_are_readable() -> None:
    values = {
        "size": [1024, 320],
        "drives": [{"path": "a", "window": [1, 2]}, {"path": "b", "window": None}],
        "words": ["two words", "three more words"],
        "pairs": [[1, 2], [3, 4]],
    }
    assert metrics_of(values) == (
        "  size: 1024, 320\n"
        "  drives:\n"
        "    - path: a\n"
        "      window: 1, 2\n"
        "    - path: b\n"
        "  words:\n"
        "    - two words\n"
        "    - three more words\n"
        "  pairs:\n"
        "    - - 1\n"
        "      - 2\n"
        "    - - 3\n"
        "      - 4"
    )


def test_a_long_list_takes_more_lines() -> None:
    text = metrics_of({"names": [f"a_rather_long_name_{i}" for i in range(9)]})
    assert len(text.splitlines()) == 10
