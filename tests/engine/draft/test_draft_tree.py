"""Growth: what a drafter knows beyond a sequence, and what a verdict leaves of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.engine.draft.draft_tree import UNREAD, DraftTree
from edgecosine.protocol.wire.tree import ROOT, TokenTree, chain

LENGTH = 10


@st.composite
def growths(draw: st.DrawFn) -> DraftTree:
    """Grown by reading some of the most probable nodes."""
    growth = DraftTree(LENGTH)
    growth.add_guesses(ROOT, _guesses(draw))
    for _ in range(draw(st.integers(0, 8))):
        for node in growth.most_probable(draw(st.integers(1, 3))):
            growth.read(node)
            growth.add_guesses(node, _guesses(draw))
    return growth


def _guesses(draw: st.DrawFn) -> DraftTokens:
    tokens = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
    shares = sorted((draw(st.floats(0, 1 / len(tokens))) for _ in tokens), reverse=True)
    return DraftTokens(tokens, shares)


def path(growth: DraftTree, node: int) -> list[int]:
    return [growth.nodes.token[at] for at in growth.path(node)]


def known(growth: DraftTree) -> dict[tuple[int, ...], bool]:
    """Token paths, and whether the model has read them."""
    return {path_: cell != UNREAD for path_, cell in cells_by_path(growth).items()}


def cells_by_path(growth: DraftTree) -> dict[tuple[int, ...], int]:
    return {tuple(path(growth, node)): growth.nodes.cell[node] for node in range(len(growth))}


@given(growths())
def test_most_probable_nodes_come_first_and_never_twice(growth: DraftTree) -> None:
    before = {node for node in range(len(growth)) if growth.nodes.cell[node] != UNREAD}
    order = growth.most_probable(100)
    reach = [growth.nodes.reach[node] for node in order]
    assert reach == sorted(reach, reverse=True)
    assert len(set(order)) == len(order)
    assert not before & set(order)


@given(growths())
def test_cells_are_those_behind_the_sequence_each_once(growth: DraftTree) -> None:
    cells = sorted(cell for cell in growth.nodes.cell[: len(growth)] if cell != UNREAD)
    assert cells == list(range(LENGTH, LENGTH + growth.num_read))


@given(growths(), st.integers(1, 64))
def test_proposal_holds_the_most_probable_nodes_parents_first(growth: DraftTree, most: int) -> None:
    proposal = growth.proposal(most)
    assert len(proposal.tokens) == min(most, len(growth))
    assert all(parent < node for node, parent in enumerate(proposal.parents))
    found: list[tuple[int, ...]] = []
    for token, parent in zip(proposal.tokens, proposal.parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    assert set(found) <= set(known(growth))


@given(growths(), st.data())
def test_what_is_left_is_what_hung_below(growth: DraftTree, data: st.DataObject) -> None:
    tokens = data.draw(
        st.sampled_from([path(growth, node) for node in range(len(growth))])
        | st.lists(st.integers(0, 5), min_size=1, max_size=4)
    )
    before, cells_of = known(growth), cells_by_path(growth)
    left, cells = growth.follow(tokens)
    read = 0
    while read < len(tokens) and before.get(tuple(tokens[: read + 1])):
        read += 1
    assert left.length == LENGTH + read
    assert cells[:read] == [cells_of[tuple(tokens[: n + 1])] for n in range(read)]
    if read < len(tokens):
        assert not left.is_root_read
        assert len(left) == 0
        return
    below = {p[read:]: seen for p, seen in before.items() if p[:read] == tuple(tokens) and p[read:]}
    assert known(left) == below
    moved = cells_by_path(left)
    for place, cell in enumerate(cells[read:]):
        [whole] = [p for p, old in cells_of.items() if old == cell]
        assert moved[whole[read:]] == left.length + place


def test_laid_tree_is_read_whole_and_continued() -> None:
    growth = DraftTree(LENGTH)
    growth.add_guesses(ROOT, DraftTokens([1, 2], [0.6, 0.3]))
    unread = growth.lay(chain((1, 7), (0.9, 0.8)))
    assert [path(growth, node) for node in unread] == [[1], [1, 7]]
    assert [growth.read(node) for node in unread] == [[LENGTH], [LENGTH, LENGTH + 1]]
    assert growth.lay(chain((1, 7), (0.9, 0.8))) == []
    assert growth.lay(TokenTree()) == []


def test_trunk_is_the_best_guess_after_the_best_guess() -> None:
    growth = DraftTree(LENGTH)
    assert growth.trunk_depth == 0
    growth.add_guesses(ROOT, DraftTokens([4, 5], [0.5, 0.4]))
    [node] = growth.most_probable(1)
    growth.read(node)
    growth.add_guesses(node, DraftTokens([6], [0.9]))
    assert growth.trunk_depth == 2
