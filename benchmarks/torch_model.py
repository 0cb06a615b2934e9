"""A plain PyTorch GPT of the emitted model's architecture, as a worker; knows nothing of JAX.

Written as one would write it in PyTorch: nn.Linear, nn.RMSNorm, scaled_dot_product_attention with
is_causal, fused AdamW, clip_grad_norm_; float32 masters under bfloat16 autocast.
"""

import time
from pathlib import Path

import numpy as np
import torch
from grown import serve
from torch import nn
from torch.nn import functional as F
from traced import top_operations

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
        nn.init.normal_(self.embedding.weight, std=c["width"] ** -0.5)  # it makes logits too
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.final_norm = nn.RMSNorm(c["width"], eps=1e-6)
        exponents = torch.arange(0, c["head_dim"], 2, dtype=torch.float64) / c["head_dim"]
        angles = torch.arange(c["seq_len"])[:, None] * c["rope_theta"] ** -exponents
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def forward(self, tokens):
        x = self.embedding(tokens)
        if torch.is_autocast_enabled(x.device.type):  # a residual stream in bfloat16, as ours
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.final_norm(x), self.embedding.weight)


def build(config, weights="", compiled=False, bfloat16=False, device="cpu", attention=""):
    """The model, with our parameters where `weights` has them; then how far it is from ours.

    attention: the only kernel that scaled_dot_product_attention may take: flash, cudnn, ...
    """
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    if attention:
        for kernel in ("flash", "mem_efficient", "cudnn", "math"):
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(kernel == attention)
    with torch.device(device):
        model = Transformer(config)
    facts = {"versions": f"torch {torch.__version__}, {torch.get_num_threads()} threads"}
    if weights:
        data = np.load(weights)
        tokens, facts = data["batch"], facts | compare(model, data)
    else:
        parts = config["micro_batches"]
        shape = (parts, config["batch_size"] // parts, config["seq_len"] + 1)
        tokens = np.random.default_rng(0).integers(1, config["vocab"], shape)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    now["optimizer"] = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    tokens = torch.from_numpy(tokens).long().to(device)
    now["micro_batches"] = [(rows[:, :-1], rows[:, 1:]) for rows in tokens]

    def objective(inputs, targets):
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits = model(inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    now["model"] = model
    now["objective"] = torch.compile(objective, fullgraph=True) if compiled else objective
    began_s = time.perf_counter()
    if compiled:  # compiling runs the model: take no step, so that both sides stay together
        now["objective"](*now["micro_batches"][0]).backward()
    return facts | {"compile_s": time.perf_counter() - began_s}


def compare(model, data):
    """Copy our parameters; the largest difference of logits and token losses to ours."""
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
    return {
        "logits": float(np.abs(logits.numpy() - data["logits"]).max()),
        "losses": float(np.abs(losses.numpy() - data["losses"]).max()),
    }


def advance(steps):
    """Take steps, one dispatched after the other; the loss of the last one, which is waited for."""
    for _ in range(steps):
        now["optimizer"].zero_grad(set_to_none=True)
        total = 0.0
        for micro_batch in now["micro_batches"]:
            part = now["objective"](*micro_batch) / len(now["micro_batches"])
            part.backward()
            total = total + part.detach()
        nn.utils.clip_grad_norm_(now["model"].parameters(), 1.0)
        now["optimizer"].step()
    now["loss"] = float(total)
    return now["loss"]


def run(steps, clock="perf_counter"):
    """Seconds a step over `steps` steps, after one that is not counted."""
    clock_s = getattr(time, clock)
    advance(1)
    began_s = clock_s()
    advance(steps)
    return (clock_s() - began_s) / steps


def loss():
    """Training loss of the last step."""
    return now["loss"]


def profile(steps, folder):
    """The largest operations of some steps."""
    with torch.profiler.profile() as profiler:
        advance(steps)
    Path(folder).mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(f"{folder}/torch.json.gz")
    return top_operations(folder, steps)


def memory():
    """Peak bytes in use on the device; None for a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


if __name__ == "__main__":
    serve(build, run, loss, advance, profile, memory)
