"""What gpu.py trains: shapes, row lengths, tokens a step and at once. Measures nothing."""

from dataclasses import dataclass

BIG = {"layers": 28, "width": 2048, "heads": 16, "kv_heads": 16, "head_dim": 128}
SMALL = {"layers": 2, "width": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp_width": 128}
SHAPES = {
    "124M": {"preset": "gpt2-124m", "vocab": 32_768},
    "1.5B": {
        "preset": "gpt2-124m",
        "vocab": 32_768,
        "model": BIG | {"mlp_width": 5632, "scan_unroll": 4, "remat": "dots"},
    },
    "tiny": {"preset": "gpt2-124m", "vocab": 512, "model": SMALL | {"scan_unroll": 2}},
    "small": {"preset": "gpt2-124m", "vocab": 512, "model": SMALL | {"width": 128, "layers": 4}},
}
# Tokens of a micro-batch by least memory of the device in GB: estimates, halved where they do not
# fit. On an H100 the 1.5B takes 59.9 GB at 16,384 tokens, and without remat 60.0 GB at 4,096.
MICRO_TOKENS = {
    "124M": {75: 65_536},
    "1.5B": {75: 16_384, 130: 32_768},
    "tiny": {0: 512},
    "small": {0: 512},
}


@dataclass(frozen=True)
class Case:
    """A shape at a row length. Both sides take the same tokens a step."""

    shape: str
    seq_len: int
    tokens_per_step: int
    at_once: int = 0
    """Tokens of a micro-batch; 0 takes the table's."""
    remat: str = ""
    """The shape's own where empty."""

    @property
    def name(self):
        said = f"{self.shape} x {self.seq_len:,}"
        said += f", remat {self.remat}" if self.remat else ""
        return said + (f", {self.at_once:,} at once" if self.at_once else "")

    def micro_tokens(self, memory_gb):
        """Tokens of a micro-batch to try first."""
        if self.at_once:
            return self.at_once
        sizes = MICRO_TOKENS[self.shape]
        fitting = [size for least_gb, size in sizes.items() if least_gb <= memory_gb]
        return max(fitting, default=min(sizes.values()) // 2)

    def settings(self, micro_tokens):
        """What our worker is asked to build."""
        parts = self.tokens_per_step // max(micro_tokens, self.seq_len)
        data = {"seq_len": self.seq_len, "batch_size": self.tokens_per_step // self.seq_len}
        shape = SHAPES[self.shape]
        model = shape.get("model", {}) | ({"remat": self.remat} if self.remat else {})
        return shape | {"model": model, "data": data, "optim": {"micro_batches": parts}}


CASES = [
    Case("124M", 1024, 524_288),  # the preset's own tokens a step
    Case("1.5B", 1024, 65_536),
    Case("124M", 4096, 524_288),
    Case("1.5B", 4096, 65_536),
]
REHEARSED = [Case("tiny", 64, 1024), Case("small", 128, 1024)]
VARIANTS = [  # of our side alone: what a micro-batch and remat are worth
    Case("124M", 1024, 524_288, 32_768),
    Case("124M", 1024, 524_288, 65_536),
    Case("1.5B", 1024, 65_536, 4_096, "none"),
    Case("1.5B", 1024, 65_536, 8_192),
    Case("1.5B", 1024, 65_536, 16_384),
]
