"""Draft trees: the order of reading, and the subtree that remains after verification."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.draft_tree import UNREAD, DraftTree
from edgecosine.protocol.wire.tree import ROOT, TokenTree, chain

LENGTH = 10


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    """Trees in which some of the most probable nodes have been read."""
    tree = DraftTree(LENGTH)
    tree.add_children(ROOT, _draft_tokens(draw))
    for _ in range(draw(st.integers(0, 8))):
        for node in tree.most_probable(draw(st.integers(1, 3))):
            tree.read(node)
            tree.add_children(node, _draft_tokens(draw))
    return tree


def _draft_tokens(draw: st.DrawFn) -> DraftTokens:
    tokens = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
    shares = sorted((draw(st.floats(0, 1 / len(tokens))) for _ in tokens), reverse=True)
    return DraftTokens(tokens, shares)


def path(tree: DraftTree, node: int) -> list[int]:
    return [tree.nodes.token[at] for at in tree.path(node)]


def known(tree: DraftTree) -> dict[tuple[int, ...], bool]:
    """Token paths, and whether the model has read them."""
    return {path_: kv_position != UNREAD for path_, kv_position in cells_by_path(tree).items()}


def cells_by_path(tree: DraftTree) -> dict[tuple[int, ...], int]:
    return {tuple(path(tree, node)): tree.nodes.kv_position[node] for node in range(len(tree))}


@given(trees())
def test_most_probable_nodes_come_first_and_never_twice(tree: DraftTree) -> None:
    before = {node for node in range(len(tree)) if tree.nodes.kv_position[node] != UNREAD}
    order = tree.most_probable(100)
    path_probability = [tree.nodes.path_probability[node] for node in order]
    assert path_probability == sorted(path_probability, reverse=True)
    assert len(set(order)) == len(order)
    assert not before & set(order)


@given(trees())
def test_kv_positions_follow_the_sequence_without_gaps(tree: DraftTree) -> None:
    kv_positions = sorted(
        kv_position for kv_position in tree.nodes.kv_position[: len(tree)] if kv_position != UNREAD
    )
    assert kv_positions == list(range(LENGTH, LENGTH + tree.num_read))


@given(trees(), st.integers(1, 64))
def test_draft_has_the_most_probable_nodes_parents_first(tree: DraftTree, most: int) -> None:
    proposal = tree.proposal(most)
    assert len(proposal.tokens) == min(most, len(tree))
    assert all(parent < node for node, parent in enumerate(proposal.parents))
    found: list[tuple[int, ...]] = []
    for token, parent in zip(proposal.tokens, proposal.parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    assert set(found) <= set(known(tree))


@given(trees(), st.data())
def test_follow_keeps_the_subtree_of_the_accepted_tokens(
    tree: DraftTree, data: st.DataObject
) -> None:
    tokens = data.draw(
        st.sampled_from([path(tree, node) for node in range(len(tree))])
        | st.lists(st.integers(0, 5), min_size=1, max_size=4)
    )
    before, cells_of = known(tree), cells_by_path(tree)
    left, kv_positions = tree.follow(tokens)
    read = 0
    while read < len(tokens) and before.get(tuple(tokens[: read + 1])):
        read += 1
    assert left.length == LENGTH + read
    assert kv_positions[:read] == [cells_of[tuple(tokens[: n + 1])] for n in range(read)]
    if read < len(tokens):
        assert not left.is_root_read
        assert len(left) == 0
        return
    below = {p[read:]: seen for p, seen in before.items() if p[:read] == tuple(tokens) and p[read:]}
    assert known(left) == below
    moved = cells_by_path(left)
    for place, kv_position in enumerate(kv_positions[read:]):
        [whole] = [p for p, old in cells_of.items() if old == kv_position]
        assert moved[whole[read:]] == left.length + place


def test_seeded_nodes_are_read_first() -> None:
    tree = DraftTree(LENGTH)
    tree.add_children(ROOT, DraftTokens([1, 2], [0.6, 0.3]))
    unread = tree.seed_with(chain((1, 7), (0.9, 0.8)))
    assert [path(tree, node) for node in unread] == [[1], [1, 7]]
    assert [tree.read(node) for node in unread] == [[LENGTH], [LENGTH, LENGTH + 1]]
    assert tree.seed_with(chain((1, 7), (0.9, 0.8))) == []
    assert tree.seed_with(TokenTree()) == []


def test_trunk_follows_the_first_children() -> None:
    tree = DraftTree(LENGTH)
    assert tree.trunk_depth == 0
    tree.add_children(ROOT, DraftTokens([4, 5], [0.5, 0.4]))
    [node] = tree.most_probable(1)
    tree.read(node)
    tree.add_children(node, DraftTokens([6], [0.9]))
    assert tree.trunk_depth == 2
