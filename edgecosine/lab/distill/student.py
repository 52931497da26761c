"""Cuts a drafter from the target: some of its layers, and an output layer for frequent tokens only.

A student made of the target's layers learns much faster than one with random weights. The output
layer dominates a small drafter's step, and a few thousand frequent tokens make up almost all text
(FR-Spec, arXiv 2502.14856); the target corrects the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

_STATES_AT_ONCE = 1024


@torch.no_grad()
def shortlist_of(states: Tensor, head: Tensor, size: int, always: Sequence[int]) -> Tensor:
    """Ids [size], in ascending order, of the target's most probable tokens, including `always`.

    Probabilities are summed over the target's `states` [n, width]. Counts of sampled tokens would
    make the rare tokens of the list random.
    """
    expected = torch.zeros(len(head), dtype=torch.float64, device=head.device)
    for part in torch.split(states, _STATES_AT_ONCE):
        expected += (part.to(head) @ head.T).float().softmax(-1).sum(0).double()
    expected[list(always)] = torch.inf
    return torch.topk(expected, size).indices.sort().values.cpu()


def cut(target: LlamaForCausalLM, layers: Sequence[int], shortlist: Tensor) -> LlamaForCausalLM:
    """A model of the target's `layers` whose output layer has only the rows of `shortlist`.

    The embedding is the target's and is not trained.
    """
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(layers)
    config.tie_word_embeddings = False
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[layer] for layer in layers]
    with torch.device("meta"):
        student = LlamaForCausalLM(config)
        student.lm_head = nn.Linear(config.hidden_size, len(shortlist), bias=False)
    body, source = cast(Any, student.model), cast(Any, target.model)
    body.layers = nn.ModuleList(copy.deepcopy(source.layers[layer]) for layer in layers)
    for index, layer in enumerate(body.layers):
        layer.self_attn.layer_idx = index
        layer.self_attn.config = student.config  # selects the attention implementation
    body.embed_tokens = copy.deepcopy(source.embed_tokens)
    body.norm, body.rotary_emb = copy.deepcopy(source.norm), copy.deepcopy(source.rotary_emb)
    rows = cast(nn.Linear, target.lm_head).weight.detach()[shortlist].clone()
    student.lm_head.weight = nn.Parameter(rows)
    body.embed_tokens.weight.requires_grad_(False)
    nn.Module.to(student, torch.float32)
    return student
