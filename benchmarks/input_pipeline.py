"""The input pipeline alone beside the training rate, and `prepare` beside Hugging Face tokenizers.

    sh hooks/uv.sh run python benchmarks/input_pipeline.py [--rounds 5]

Batches: `make_batches` of preset demo and the bare compiled step, in turn. Prepare: the emitted
`prepare` (find, read, hash, train BPE, tokenize, write and fsync shards) and, in turn, the library
alone on texts already in memory (train the same BPE, encode all texts at once).
"""

import argparse
import shutil
import time
from dataclasses import replace
from statistics import median

from grown import BUILD, describe_machine, enter_project, ratio, table


def measure_batches(rounds, count=200, steps=5):
    """Seconds a batch and seconds a step, of each round."""
    import jax
    from acorn.config import PRESETS, validate
    from acorn.runtime.compiled import abstract_state, initialise, jit_step
    from acorn.runtime.sharding import make_mesh
    from acorn.workload import make_workload

    config = validate(PRESETS["demo"]())
    config = replace(config, optim=replace(config.optim, optimizer="adamw"))
    mesh = make_mesh(config.mesh)
    workload = make_workload(config, mesh)
    _, shardings = abstract_state(workload, 0, mesh)
    step, state = jit_step(workload, shardings, mesh), initialise(workload, 0, shardings)
    batch_s, step_s, cursor = [], [], 0
    state, metrics, _ = step(state, workload.batch(0))
    for _ in range(rounds):
        jax.block_until_ready(metrics)
        began_s = time.perf_counter()
        for _ in range(count):
            batch = workload.batch(cursor)
            cursor += workload.stride
        jax.block_until_ready(batch)
        batch_s.append((time.perf_counter() - began_s) / count)
        began_s = time.perf_counter()
        for _ in range(steps):
            state, metrics, _ = step(state, batch)
        jax.block_until_ready(metrics)
        step_s.append((time.perf_counter() - began_s) / steps)
    tokens = workload.rate[1]
    print(f"batches: {tokens / median(batch_s):,.0f} tokens/s, training: ", end="")
    print(f"{tokens / median(step_s):,.0f} tokens/s, ratio {ratio(step_s, batch_s):.0f}")


def measure_prepare(rounds):
    """MB/s of corpus text, prepared by us and by the library alone."""
    import tokenizers
    from acorn.config import PRESETS
    from acorn.text.corpus import read_documents
    from acorn.text.prepare import prepare
    from acorn.text.tokenizer import train_bpe

    folder = BUILD / "prepare"
    data = replace(PRESETS["demo"]().data, prepared_dir=str(folder))
    texts = [document.text for document in read_documents(data)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds = {name: [] for name in ("prepare", "library", "encode only", "read only")}

    def timed(name, act):
        began_s = time.perf_counter()
        result = act()
        seconds[name].append(time.perf_counter() - began_s)
        return result

    def library():
        inner = tokenizers.Tokenizer.from_str(train_bpe(iter(texts), data.vocab_size))
        began_s = time.perf_counter()
        inner.encode_batch_fast(texts)
        seconds["encode only"].append(time.perf_counter() - began_s)

    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        timed("prepare", lambda: prepare(data, show=False))
        timed("library", library)
        timed("read only", lambda: sum(1 for _ in read_documents(data)))
    print(f"{len(texts)} documents, {megabytes:.2f} MB, tokenizers {tokenizers.__version__}")
    rows = [[name, f"{megabytes / median(took):.2f}"] for name, took in seconds.items()]
    table(["what", "MB/s"], rows)
    print(f"prepare / library: {ratio(seconds['library'], seconds['prepare']):.2f} x its speed")


if __name__ == "__main__":
    enter_project()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine())
    measure_batches(options.rounds)
    measure_prepare(options.rounds)
