"""A GPT with the parameter names of nanoGPT and makemore.py checkpoints, written from the papers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, n_head: int, block_size: int, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (p.view(B, T, self.n_head, -1).transpose(1, 2) for p in self.c_attn(x).split(C, 2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(self.bias[:, :, :T, :T] == 0, -math.inf)
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, width: int, n_head: int, block_size: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn = Attention(width, n_head, block_size, bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias=bias), "c_proj": nn.Linear(4 * width, width, bias=bias)}
        )
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=self.gelu)
        return x + self.mlp["c_proj"](hidden)


class Reference(nn.Module):
    """nanoGPT has ``bias=False`` and a tied head; makemore.py has biases and a separate head."""

    def __init__(self, vocab_size: int, tied: bool, bias: bool, gelu: str = "tanh") -> None:
        super().__init__()
        torch.manual_seed(0)
        width, n_head, block_size = 32, 2, 16
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, width),
                "wpe": nn.Embedding(block_size, width),
                "h": nn.ModuleList(Block(width, n_head, block_size, bias, gelu) for _ in range(2)),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        modules = self.transformer
        x = modules["wte"](tokens) + modules["wpe"](torch.arange(tokens.shape[1]))
        for block in modules["h"]:
            x = block(x)
        return self.lm_head(modules["ln_f"](x))
