"""What gpu.py trains: shapes, row lengths, tokens a step and at once. Measures nothing."""

from dataclasses import dataclass

BIG = {"layers": 28, "width": 2048, "heads": 16, "kv_heads": 16, "head_dim": 128}
SMALL = {"layers": 2, "width": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp_width": 128}
SHAPES = {
    "124M": {"preset": "gpt2-124m", "vocab": 32_768},
    "1.5B": {
        "preset": "gpt2-124m",
        "vocab": 32_768,
        "model": BIG | {"mlp_width": 5632, "scan_unroll": 4},
    },
    "tiny": {"preset": "gpt2-124m", "vocab": 512, "model": SMALL | {"scan_unroll": 2}},
    "small": {"preset": "gpt2-124m", "vocab": 512, "model": SMALL | {"width": 128, "layers": 4}},
}
# Tokens of a micro-batch by least memory of the device in GB: estimates, halved where they do not
# fit. The 1.5B keeps about 95 kB a token and layer in eighteen bytes a parameter of state.
MICRO_TOKENS = {
    "124M": {75: 32_768, 130: 65_536},
    "1.5B": {75: 8_192, 130: 16_384},
    "tiny": {0: 512},
    "small": {0: 512},
}


@dataclass(frozen=True)
class Case:
    """A shape at a row length. Both sides take the same tokens a step."""

    shape: str
    seq_len: int
    tokens_per_step: int

    @property
    def name(self):
        return f"{self.shape} x {self.seq_len:,}"

    def micro_tokens(self, memory_gb):
        """Tokens of a micro-batch to try first."""
        sizes = MICRO_TOKENS[self.shape]
        fitting = [size for least_gb, size in sizes.items() if least_gb <= memory_gb]
        return max(fitting, default=min(sizes.values()) // 2)

    def settings(self, micro_tokens):
        """What our worker is asked to build."""
        parts = self.tokens_per_step // max(micro_tokens, self.seq_len)
        data = {"seq_len": self.seq_len, "batch_size": self.tokens_per_step // self.seq_len}
        return SHAPES[self.shape] | {"data": data, "optim": {"micro_batches": parts}}


CASES = [
    Case("124M", 1024, 524_288),  # the preset's own tokens a step
    Case("1.5B", 1024, 65_536),
    Case("124M", 4096, 524_288),
    Case("1.5B", 4096, 65_536),
]
REHEARSED = [Case("tiny", 64, 1024), Case("small", 128, 1024)]
