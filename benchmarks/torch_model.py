"""A plain PyTorch GPT of the emitted model's architecture, as a worker (Python 3.11, torch CPU).

Written as one would write it in PyTorch: nn.Linear, nn.RMSNorm, scaled_dot_product_attention with
is_causal, fused AdamW, clip_grad_norm_.
"""

import contextlib
import time

import numpy as np
import torch
from grown import serve
from torch import nn
from torch.nn import functional as F

now = {}  # model, optimizer, tokens: what the calls below share


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c["heads"], c["kv_heads"], c["head_dim"]
        self.query = nn.Linear(c["width"], self.heads * self.dim, bias=False)
        self.key = nn.Linear(c["width"], self.kv_heads * self.dim, bias=False)
        self.value = nn.Linear(c["width"], self.kv_heads * self.dim, bias=False)
        self.out = nn.Linear(self.heads * self.dim, c["width"], bias=False)
        norm = (lambda: nn.RMSNorm(self.dim, eps=1e-6)) if c["qk_norm"] else nn.Identity
        self.query_norm, self.key_norm = norm(), norm()

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, self.heads, self.dim)
        k = self.key(x).view(batch, length, self.kv_heads, self.dim)
        v = self.value(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        q = rotate(self.query_norm(q).transpose(1, 2), cos, sin)
        k = rotate(self.key_norm(k).transpose(1, 2), cos, sin)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention_norm = nn.RMSNorm(c["width"], eps=1e-6)
        self.attention = Attention(c)
        self.mlp_norm = nn.RMSNorm(c["width"], eps=1e-6)
        self.gate = nn.Linear(c["width"], c["mlp_width"], bias=False)
        self.up = nn.Linear(c["width"], c["mlp_width"], bias=False)
        self.down = nn.Linear(c["mlp_width"], c["width"], bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Transformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Embedding(c["vocab"], c["width"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.final_norm = nn.RMSNorm(c["width"], eps=1e-6)
        exponents = torch.arange(0, c["head_dim"], 2, dtype=torch.float64) / c["head_dim"]
        angles = torch.arange(c["seq_len"])[:, None] * c["rope_theta"] ** -exponents
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.final_norm(x), self.embedding.weight)


def build(config, weights, compiled=False, bfloat16=False):
    """The model with our parameters; the largest difference of logits and token losses to ours."""
    torch.manual_seed(0)
    data, model = np.load(weights), Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            block, _, rest = name.removesuffix(".weight").partition(".")
            if block == "blocks":
                layer, _, path = rest.partition(".")
                source = data["blocks." + path.removeprefix("attention.")][int(layer)]
                source = source.T if source.ndim == 2 else source
            else:
                source = data[block]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(source)))
        tokens = torch.from_numpy(data["tokens"]).long()
        logits = model(tokens[:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    now["optimizer"] = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    batch = torch.from_numpy(data["batch"]).long()
    now["inputs"], now["targets"] = batch.flatten(0, 1)[:, :-1], batch.flatten(0, 1)[:, 1:]
    now["model"] = torch.compile(model) if compiled else model
    now["bfloat16"] = bfloat16
    began_s = time.perf_counter()
    if compiled:  # compiling runs the model: take no step, so that both sides stay together
        F.cross_entropy(
            now["model"](now["inputs"]).flatten(0, 1), now["targets"].flatten()
        ).backward()
    return {
        "logits": float(np.abs(logits.numpy() - data["logits"]).max()),
        "losses": float(np.abs(losses.numpy() - data["losses"]).max()),
        "compile_s": time.perf_counter() - began_s,
        "versions": f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    }


def step():
    """One update."""
    model, optimizer = now["model"], now["optimizer"]
    optimizer.zero_grad(set_to_none=True)
    half = torch.autocast("cpu", torch.bfloat16) if now["bfloat16"] else contextlib.nullcontext()
    with half:
        logits = model(now["inputs"])
    loss = F.cross_entropy(logits.float().flatten(0, 1), now["targets"].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    now["loss"] = loss.item()


def run(steps, clock="perf_counter"):
    """Seconds a step over `steps` steps, after one that is not counted."""
    clock_s = getattr(time, clock)
    for count in (1, steps):
        began_s = clock_s()
        for _ in range(count):
            step()
    return (clock_s() - began_s) / steps


def loss():
    """Training loss of the last step."""
    return now["loss"]


if __name__ == "__main__":
    serve(build, run, loss)
