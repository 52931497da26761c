"""The domains' texts: split by hash, reported when missing, generated deterministically."""

from pathlib import Path

import pytest

from edgecosine.lab.zoo.corpus import (
    CorpusSettings,
    MissingSourceError,
    document_hash,
    domain_documents,
    is_held_out,
    split_documents,
)
from edgecosine.lab.zoo.home import END, home_documents


def test_home_generator_is_a_function_of_its_seed() -> None:
    first = list(home_documents(50, seed=3))
    assert first == list(home_documents(50, seed=3))
    assert first != list(home_documents(50, seed=4))
    assert first[:20] == list(home_documents(20, seed=3))


def test_home_dialogues_follow_the_chat_template() -> None:
    for text in home_documents(200, seed=5):
        turns = text.split(END)
        assert turns[0].startswith(("System: It is ", "User: "))
        assert all("User: " in turn and "\nAssistant: " in turn for turn in turns)


def test_home_arithmetic_is_right() -> None:
    sums = 0
    for text in home_documents(400, seed=6):
        for line in text.split("\n"):
            if "The sum is " in line:
                left, _, right = line.partition("The sum is ")[2].partition(" = ")
                total = int(right.partition(".")[0])
                assert sum(int(part) for part in left.split(" + ")) == total
                sums += 1
    assert sums > 5


def test_split_is_disjoint_and_stable() -> None:
    settings = CorpusSettings(home_dialogues=600, smallest_domain=1000)
    documents = domain_documents("home", settings)
    split = split_documents(documents, settings)
    train, held_out = set(map(document_hash, split.train)), set(map(document_hash, split.held_out))
    assert not train & held_out
    assert len(train) + len(held_out) == len(documents)
    assert 0.01 < len(held_out) / len(documents) < 0.1
    assert all(is_held_out(text + "  \n") for text in split.held_out)


def test_missing_source_is_reported_with_its_package(tmp_path: Path) -> None:
    settings = CorpusSettings(man_root=tmp_path)
    with pytest.raises(MissingSourceError, match="manpages"):
        domain_documents("manual", settings)


def test_repeated_documents_count_once(tmp_path: Path) -> None:
    text = "Permission is granted to anyone to use this text. " * 10
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "copyright").write_text(text)
    (tmp_path / "b" / "copyright").write_text(text.replace(". ", ".\n"))
    settings = CorpusSettings(licence_root=tmp_path / "none", doc_root=tmp_path, smallest_domain=10)
    assert len(domain_documents("legal", settings)) == 1
