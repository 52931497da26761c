"""Acceptance, loops and noise in cases with known results."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgecosine.lab.looping_share import loop_share
from edgecosine.lab.zoo.evaluation import (
    accepted_per_round,
    drafter_choices,
    held_out_loss,
    held_out_rows,
    mean_accepted,
)
from edgecosine.lab.zoo.generation import GenerationSampling, generate
from edgecosine.lab.zoo.muon import orthogonalise

VOCABULARY = 32


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def test_rounds_end_at_the_first_mismatch_or_the_draft_length() -> None:
    yes, no = True, False
    matches = [yes, yes, no, no, yes, yes, yes, yes, no, yes, yes]
    # Rounds start at 0, 3, 4 and 8, where three tokens still fit; a full chain skips one token.
    assert accepted_per_round(matches, 3) == [2, 0, 3, 0]
    assert accepted_per_round([yes] * 6, 3) == [3]
    assert accepted_per_round([yes] * 7, 3) == [3, 3]


def test_the_target_itself_is_always_accepted() -> None:
    target = tiny(1)
    prompts = torch.arange(8).reshape(2, 4)
    for temperature in (0.0, 0.8):
        sampling = GenerationSampling(temperature, torch.tensor([5, 6]))
        tokens = generate(target, prompts, 28, sampling).tokens
        assert mean_accepted(target, tokens, 4, sampling, gamma=6) == 6


def test_walk_equals_drafting_token_by_token() -> None:
    target, drafter, prompt, gamma = tiny(1), tiny(2), 4, 4
    sampling = GenerationSampling(0.8, torch.tensor([9]))
    tokens = generate(target, torch.arange(4)[None], 40, sampling).tokens
    rounds, position = [], prompt
    while position + gamma <= tokens.shape[1]:
        drafted = generate(drafter, tokens[:, :position], gamma, sampling).tokens[0, position:]
        same = (drafted == tokens[0, position : position + gamma]).tolist()
        accepted = same.index(False) if False in same else gamma
        rounds.append(accepted)
        position += accepted + 1
    choices = drafter_choices(drafter, tokens, prompt, sampling)
    matches = (choices == tokens[:, prompt:])[0].tolist()
    assert accepted_per_round(matches, gamma) == rounds


def test_loop_share_counts_repeated_grams() -> None:
    assert loop_share(list(range(40))) == 0
    assert loop_share([1, 2, 3, 4] * 10) == 1
    assert loop_share([*range(8), *range(20, 44), *range(8)], gram=8) == 16 / 40


def test_loss_of_a_uniform_model_is_the_log_of_the_vocabulary() -> None:
    model = tiny(3)
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = held_out_rows([i % VOCABULARY for i in range(100)], length=16, most=3)
    assert rows.shape == (3, 17)
    loss = held_out_loss(model, rows, torch.full((VOCABULARY,), 2))
    assert abs(loss.nats_per_token - torch.tensor(float(VOCABULARY)).log().item()) < 1e-5
    assert abs(loss.bits_per_byte - 2.5) < 1e-5


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 20), (2, 20, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape)))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.4
