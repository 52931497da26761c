"""Token trees: the invariants of the value, and its views for any tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.protocol.wire.tree import EMPTY_TREE, ROOT, TokenTree, chain, checked_tree


@st.composite
def trees(draw: st.DrawFn, max_size: int = 12) -> TokenTree:
    """Any tree: each node under some earlier one, siblings different."""
    parents: list[int] = []
    tokens: list[int] = []
    for node in range(draw(st.integers(0, max_size))):
        parent = draw(st.integers(ROOT, node - 1))
        siblings = {token for token, above in zip(tokens, parents, strict=True) if above == parent}
        tokens.append(draw(st.sampled_from(sorted(set(range(21)) - siblings))))
        parents.append(parent)
    size = len(tokens)
    confidences = draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    return checked_tree(tuple(tokens), tuple(parents), tuple(confidences), (1,) * size)


@given(trees())
def test_path_leads_from_the_root_down_to_its_node(tree: TokenTree) -> None:
    for node in range(len(tree)):
        path = tree.path(node)
        assert path[-1] == node
        assert len(path) == tree.depths[node]
        assert [tree.parents[below] for below in path] == [ROOT, *path[:-1]]
    assert tree.path(ROOT) == ()


@given(trees(), st.integers(0, 20))
def test_child_is_found_by_its_token(tree: TokenTree, token: int) -> None:
    for parent in range(ROOT, len(tree)):
        found = [
            node
            for node in range(len(tree))
            if tree.parents[node] == parent and tree.tokens[node] == token
        ]
        assert tree.child(parent, token) == (found[0] if found else None)


@given(trees())
def test_chain_is_a_tree_whose_nodes_have_at_most_one_child(tree: TokenTree) -> None:
    assert tree.is_chain == (len(set(tree.parents)) == len(tree))


@given(st.lists(st.integers(0, 99), max_size=12).map(tuple))
def test_chain_holds_its_tokens_in_order(tokens: tuple[int, ...]) -> None:
    tree = chain(tokens)
    assert tree.is_chain
    assert tree.tokens == tokens
    assert tree.depths == tuple(range(1, len(tokens) + 1))
    assert len(chain(())) == len(EMPTY_TREE) == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (((1, 2), (-1,), (1.0, 1.0), (1, 1)), "one parent"),
        (((1,), (-1,), (), (1,)), "one parent"),
        (((1,), (-1,), (1.0,), ()), "one parent"),
        (((1,), (0,), (1.0,), (1,)), "before their children"),
        (((1, 2), (1, -1), (1.0, 1.0), (1, 1)), "before their children"),
        (((1,), (-2,), (1.0,), (1,)), "before their children"),
        (((1, 1), (-1, -1), (1.0, 1.0), (1, 1)), "different tokens"),
        (((3, 1, 1), (-1, 0, 0), (1.0,) * 3, (1,) * 3), "different tokens"),
    ],
)
def test_malformed_tree_is_refused_with_the_reason(fields: tuple, reason: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=reason):
        checked_tree(*fields)
