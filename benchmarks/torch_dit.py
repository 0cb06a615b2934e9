"""A plain PyTorch DiT of the emitted model's architecture, as a worker; knows nothing of JAX.

Written as one would write it to be fast in PyTorch on a CPU: one product for queries, keys and
values and one for both halves of the SwiGLU, scaled_dot_product_attention, addcmul, fused AdamW,
foreach averages, inference_mode. Tried on two cores: separate products and attention
written out (within 5%), frozen weights and max-autotune (7% faster, after minutes of tuning).
"""

import copy
import functools
import time

import numpy as np
import torch
from grown import serve
from torch import nn
from torch.nn import functional as F

SINUSOIDS = 256
now = {}  # config, model, optimizer, averages, ...: what the calls below share


def rope_angles(dim, rows, columns, theta):
    """Angles of 2-D RoPE, [patches, dim / 2]: the row turns the first half, the column the rest."""
    frequency = theta ** -(torch.arange(0, dim // 2, 2, dtype=torch.float64) / (dim // 2))
    row = torch.arange(rows).repeat_interleave(columns)[:, None] * frequency
    column = torch.arange(columns).repeat(rows)[:, None] * frequency
    return torch.cat([row, column], -1)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def modulate(x, shift, scale):
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.dim = c["heads"], c["width"] // c["heads"]
        self.qkv = nn.Linear(c["width"], 3 * c["width"], bias=False)
        self.out = nn.Linear(c["width"], c["width"], bias=False)
        self.query_norm = nn.RMSNorm(self.dim, eps=1e-6)
        self.key_norm = nn.RMSNorm(self.dim, eps=1e-6)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.dim).unbind(2)
        q = rotate(self.query_norm(q), cos, sin).transpose(1, 2)
        k = rotate(self.key_norm(k), cos, sin).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.modulation = nn.Linear(c["width"], 6 * c["width"])
        self.attention = Attention(c)
        self.gate_up = nn.Linear(c["width"], 2 * c["mlp_width"], bias=False)
        self.down = nn.Linear(c["mlp_width"], c["width"], bias=False)

    def forward(self, x, condition, cos, sin):
        parts = self.modulation(condition)[:, None].chunk(6, dim=-1)
        h = self.attention(modulate(x, parts[0], parts[1]), cos, sin)
        x = torch.addcmul(x, parts[2], h)
        gate, up = self.gate_up(modulate(x, parts[3], parts[4])).chunk(2, dim=-1)
        return torch.addcmul(x, parts[5], self.down(F.silu(gate) * up))


class DiT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.patch, (height, width, self.channels) = c["patch"], c["shape"]
        self.rows, self.columns = height // self.patch, width // self.patch
        numbers = self.patch**2 * self.channels
        self.embed = nn.Linear(numbers, c["width"], bias=False)
        self.registers = nn.Parameter(0.02 * torch.randn(c["registers"], c["width"]))
        self.noise_in = nn.Linear(SINUSOIDS, c["width"], bias=False)
        self.noise_out = nn.Linear(c["width"], c["width"], bias=False)
        self.label = nn.Embedding(c["classes"] + 1, c["width"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.modulation = nn.Linear(c["width"], 2 * c["width"])
        self.out = nn.Linear(c["width"], numbers, bias=False)
        for layer in (self.out, self.modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)
        grid = (self.rows, self.columns, c["rope_theta"])
        angles = rope_angles(c["width"] // c["heads"], *grid)
        angles = torch.cat([torch.zeros(c["registers"], angles.shape[1]), angles])[:, None]
        waves = rope_angles(c["width"], *grid)
        half = torch.arange(SINUSOIDS // 2, dtype=torch.float64) / (SINUSOIDS // 2)
        tables = {
            "cos": angles.cos(),
            "sin": angles.sin(),
            "waves": torch.cat([waves.cos(), waves.sin()], -1),
            "frequency": 100 * 1000.0**-half,
        }
        for name, values in tables.items():
            self.register_buffer(name, values.float())

    def forward(self, x, t, label):
        batch, p = len(x), self.patch
        x = x.view(batch, self.rows, p, self.columns, p, self.channels)
        x = self.embed(x.permute(0, 1, 3, 2, 4, 5).reshape(batch, self.rows * self.columns, -1))
        angles = t[:, None] * self.frequency
        noise = self.noise_in(torch.cat([angles.cos(), angles.sin()], -1))
        condition = F.silu(self.noise_out(F.silu(noise)) + self.label(label))
        x = torch.cat([self.registers.expand(batch, -1, -1), x + self.waves], 1)
        for block in self.blocks:
            x = block(x, condition, self.cos, self.sin)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        x = self.out(modulate(x[:, len(self.registers) :], shift, scale))
        x = x.view(batch, self.rows, self.columns, p, p, self.channels).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, self.rows * p, self.columns * p, self.channels)


# Which of our arrays make a parameter here, where the names differ.
SOURCES = {
    "attention.qkv": ["attention.query", "attention.key", "attention.value"],
    "gate_up": ["gate", "up"],
    "modulation": ["modulation.matrix"],
    "noise_in": ["condition.noise_in"],
    "noise_out": ["condition.noise_out"],
    "label": ["condition.label"],
}


def copied(model, arrays, tree):
    """A tree of our parameters, as a list in the order of the model's."""

    def ours(name):
        block, _, rest = name.removesuffix(".weight").partition(".")
        if block == "blocks":
            layer, _, path = rest.partition(".")
            found = [arrays[f"{tree}.blocks.{x}"][int(layer)] for x in SOURCES.get(path, [path])]
        else:
            path = f"{block}.{rest}" if rest else block
            found = [arrays[f"{tree}.{x}"] for x in SOURCES.get(path, [path])]
        whole = np.concatenate(found, -1)
        transposed = name.endswith(".weight") and name != "label.weight" and whole.ndim == 2
        return torch.from_numpy(np.ascontiguousarray(whole.T if transposed else whole))

    return [ours(name) for name, _ in model.named_parameters()]


def objective(x, eps, t, label):
    """Flow matching on the linear path: the network predicts eps - x."""
    at = t[:, None, None, None]
    return F.mse_loss(now["model"](torch.lerp(x, eps, at), t, label), eps - x)


def draw(images, labels):
    """What a step trains on: stratified logit-normal times, one class in ten dropped."""
    c, count = now["config"], len(labels)
    x = images.float() * (2 / (c["levels"] - 1)) - 1
    quantile = (torch.randperm(count) + torch.rand(count)) / count
    t = torch.sigmoid(c["time_mean"] + c["time_std"] * torch.special.ndtri(quantile))
    label = torch.where(torch.rand(count) < c["label_dropout"], c["classes"], labels)
    return x, torch.randn_like(x), t.clamp(c["least_time"], 1.0), label


def shares(config, count):
    """Of the parameters after update `count`, in each average."""
    decays = [max(1 - decay, 9 / (10 + count)) for decay in config["decays"]]
    return decays + [1 - (1 - 1 / count) ** (power + 1) for power in config["exponents"]]


@torch.no_grad()
def update(*drawn):
    """One step of training on what `draw` gives; its loss."""
    with torch.enable_grad():
        loss = now["objective"](*drawn)
    loss.backward()
    parameters, clip_norm = now["parameters"], now["config"]["clip_norm"]
    nn.utils.clip_grad_norm_(parameters, clip_norm, foreach=True)
    now["optimizer"].step()
    now["optimizer"].zero_grad(set_to_none=True)
    now["count"] += 1
    for average, share in zip(now["averages"], shares(now["config"], now["count"]), strict=True):
        torch._foreach_lerp_(average, parameters, share)
    return loss.detach()


@torch.inference_mode()
def sample(noise, labels):
    """Heun's method from t = 1 to 0, whose last step is Euler's; the network gives dx/dt."""
    steps, x = now["config"]["sampler_steps"], noise
    times = torch.linspace(1, 0, steps + 1)
    for index in range(steps):
        at, after = times[index].expand(len(x)), times[index + 1].expand(len(x))
        width = times[index + 1] - times[index]
        slope = now["network"](x, at, labels)
        guess = x + width * slope
        if index + 1 < steps:
            slope = (slope + now["network"](guess, after, labels)) / 2
            guess = x + width * slope
        x = guess
    return x


def build(config, weights, compiled=False):
    """The model with our parameters, then how far all that it does is from ours."""
    torch.manual_seed(0)
    c, model, arrays = config, DiT(config), dict(np.load(weights))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == c["parameters"], f"got {count:,} parameters, expected {c['parameters']:,}"
    parameters, start = list(model.parameters()), copied(model, arrays, "start")
    with torch.no_grad():
        for parameter, array in zip(parameters, start, strict=True):
            parameter.copy_(array)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": c["weight_decay"]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (c["beta1"], c["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=c["learning_rate"], betas=betas, fused=True)
    averages = [[x.clone() for x in start] for _ in c["averages"]]
    now.update(config=c, model=model, optimizer=optimizer, parameters=parameters, count=0)
    now.update(averages=averages, drawn_with=copy.deepcopy(model).requires_grad_(False))
    maybe = functools.partial(torch.compile, fullgraph=True) if compiled else lambda x: x
    now.update(objective=maybe(objective), network=maybe(now["drawn_with"]))
    now["batch"] = [torch.from_numpy(arrays[f"batch.{name}"]) for name in ("image", "label")]
    now["batch"][1] = now["batch"][1].long()
    now["labels"] = torch.from_numpy(arrays["labels"]).long()
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    return compare(arrays, start) | {"versions": versions}


def compare(arrays, start):
    """Largest differences to ours: of the network, a draw of samples, and what steps of it moved.

    Takes as many steps as ours has taken, with its draws.
    """
    names = ("x", "eps", "t", "label")
    drawn = [torch.from_numpy(arrays[name]) for name in names]
    drawn = [[rows[number] for rows in drawn] for number in range(len(drawn[0]))]
    with torch.inference_mode():
        output = now["network"](drawn[0][1], drawn[0][2], drawn[0][3].long())
    images = draw_samples(torch.from_numpy(arrays["noise"]))
    losses = [float(update(*rows[:3], rows[3].long())) for rows in drawn]
    found = {
        "output": float(np.abs(output.numpy() - arrays["output"]).max()),
        "images": float(np.abs(images - arrays["images"]).max()),
        "losses": float(np.abs(np.array(losses) - arrays["losses"]).max()),
    }

    def size(tensors):
        return float(torch.stack([tensor.norm() for tensor in tensors]).norm())

    for name, mine in zip(
        ["raw", *now["config"]["averages"]], [now["parameters"], *now["averages"]], strict=True
    ):
        theirs = copied(now["model"], arrays, name)
        missed = size([x.detach() - y for x, y in zip(mine, theirs, strict=True)])
        found[name] = missed / size([x - y for x, y in zip(start, theirs, strict=True)])
    return found


def draw_samples(noise):
    """Images as an array, in parts of at most a batch, as the emitted command draws them."""
    size = now["config"]["batch_size"]
    parts = zip(noise.split(size), now["labels"].split(size), strict=True)
    return torch.cat([sample(*part) for part in parts]).numpy()


def run(steps, what, clock="perf_counter"):
    """Seconds a step of training, after one that is not counted, or a draw of samples."""
    clock_s = getattr(time, clock)
    if what == "train":
        update(*draw(*now["batch"]))
    else:  # as someone would who draws with an average while training goes on
        place = now["config"]["averages"].index(now["config"]["average"])
        for to, average in zip(now["drawn_with"].parameters(), now["averages"][place], strict=True):
            to.copy_(average)
    began_s = clock_s()
    for _ in range(steps):
        if what == "train":
            loss = update(*draw(*now["batch"]))
        else:
            draw_samples(torch.randn(len(now["labels"]), *now["config"]["shape"]))
    if what == "train":
        float(loss)
    return (clock_s() - began_s) / steps


if __name__ == "__main__":
    serve(build, run)
