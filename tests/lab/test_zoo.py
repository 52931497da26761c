"""The committed zoo: small, loadable, and with valid prompts."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgecosine
from edgecosine.lab.zoo.corpus import DOMAINS
from edgecosine.lab.zoo.recipe import DRAFTERS

ZOO = Path(edgecosine.__file__).parent / "zoo"
NAMES = ("target", *DRAFTERS)


def test_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*.safetensors")) <= 25_000_000


@pytest.mark.parametrize("name", NAMES)
def test_models_load_and_predict(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(ZOO / name, dtype=torch.float32)
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, 4096)
    assert bool(logits.isfinite().all())
    assert model.generation_config.eos_token_id == 0


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_are_the_same(name: str) -> None:
    own, first = ZOO / name / "tokenizer.json", ZOO / "target" / "tokenizer.json"
    assert own.read_bytes() == first.read_bytes()


def test_prompts_are_48_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "target")
    prompts = json.loads((ZOO / "prompts.json").read_text(encoding="utf-8"))
    assert set(prompts) == set(DOMAINS)
    for domain in DOMAINS:
        assert len(prompts[domain]) >= 24
        assert len({prompt["id"] for prompt in prompts[domain]}) == len(prompts[domain])
        for prompt in prompts[domain]:
            ids = tokenizer(prompt["text"])["input_ids"]
            assert len(ids) == 48
            assert tokenizer.decode(ids) == prompt["text"]


def test_chat_template_matches_the_training_text_of_home() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "target")
    messages = [
        {"role": "system", "content": "It is 07:30 on Monday."},
        {"role": "user", "content": "Good night."},
        {"role": "assistant", "content": "Sleep well."},
        {"role": "user", "content": "Which devices are on?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "System: It is 07:30 on Monday.\nUser: Good night.\nAssistant: Sleep well.<|endoftext|>"
        "User: Which devices are on?\nAssistant:"
    )


def test_card_and_figures_agree() -> None:
    figures = json.loads((ZOO / "zoo.json").read_text(encoding="utf-8"))
    card = (ZOO / "README.md").read_text(encoding="utf-8")
    assert figures["domains"] == list(DOMAINS)
    assert set(figures["drafters"]) == set(DRAFTERS)
    assert figures["drafters"]["python"]["domain"] == "python"
    for row in figures["acceptance"]["0.0"]["matrix"].values():
        assert all(f"{value:.2f}" in card for value in row.values())
