"""A model computes in a wider format than its weights have, also where operators cannot."""

from __future__ import annotations

import torch
from torch import nn

from edgecosine.engine.float32_reference import computing_in


def test_quantised_products_are_computed_in_float32() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # slow to import

    generator = torch.Generator().manual_seed(0)
    packed, state = quantize_4bit(torch.randn(64, 64, generator=generator), quant_type="nf4")
    x = torch.randn(8, 64, generator=generator)
    with computing_in(torch.float64, nn.Identity()):
        product = torch.ops.bitsandbytes.gemm_4bit(
            x.double(), packed, state.shape, state.absmax, state.blocksize, state.quant_type
        )
    assert product.dtype == torch.float64
    exact = x.double() @ dequantize_4bit(packed, state).double().T
    torch.testing.assert_close(product, exact, rtol=1e-4, atol=1e-4)
