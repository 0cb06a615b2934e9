"""The operations that a profiler's trace says the time went to. Standard library only.

Reads the Chrome trace (.json.gz) that `jax.profiler` and `torch.profiler` both write, so that the
two sides of a comparison are counted in one way.
"""

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

TORCH_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
# What holds or waits for operations and is none itself, where only the host was traced.
NOT_OPERATIONS = re.compile(
    r"\$|ThreadpoolListener|ThunkExecutor|ProfilerStep|PjitFunction|CommonPjRt|Wait"
)


def top_operations(folder, steps, count=10):
    """Where the device's time went: the `count` operations with the largest share, per step.

    The time of an operation is what it does not spend in others on the same stream or thread.
    Without a GPU, operations of the host's threads are counted.
    """
    newest = max(Path(folder).rglob("*.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(newest) as file:
        events = json.load(file)["traceEvents"]
    kept, source = device_events(events)
    spent_us, calls = self_times(kept)
    in_all_us = sum(spent_us.values())
    largest = sorted(spent_us, key=spent_us.get, reverse=True)[:count]
    return {
        "source": source,
        "busy_ms_per_step": in_all_us / 1e3 / steps,
        "top": [
            {
                "name": name,
                "ms_per_step": spent_us[name] / 1e3 / steps,
                "share": spent_us[name] / in_all_us,
                "calls_per_step": calls[name] / steps,
            }
            for name in largest
        ],
    }


def device_events(events):
    """Complete events of a GPU's streams, else of the host's threads; and which they are."""
    processes, threads = {}, {}
    for event in events:
        if event.get("ph") == "M" and event["name"] == "process_name":
            processes[event["pid"]] = str(event["args"]["name"])
        elif event.get("ph") == "M" and event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = str(event["args"]["name"])
    complete = [event for event in events if event.get("ph") == "X" and event.get("dur")]
    kernels = [event for event in complete if event.get("cat") in TORCH_KERNELS]
    if kernels:
        return kernels, "kernels of the GPU"
    streams = [
        event
        for event in complete
        if processes.get(event["pid"], "").startswith("/device:GPU")
        and threads.get((event["pid"], event["tid"]), "").startswith("Stream")
    ]
    if streams:
        return streams, "streams of the GPU"
    host = [event for event in complete if not NOT_OPERATIONS.match(event["name"])]
    seen = sorted({*processes.values(), *threads.values()})
    return host, f"host threads; the trace names {', '.join(seen)[:300]}"


def self_times(events):
    """Microseconds and calls by name; what lies inside another event is taken off it."""
    spent_us, calls, open_events = defaultdict(float), defaultdict(int), defaultdict(list)
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        name, end = plain_name(event["name"]), event["ts"] + event["dur"]
        stack = open_events[event["pid"], event["tid"]]
        while stack and stack[-1][1] <= event["ts"]:
            stack.pop()
        if stack:
            spent_us[stack[-1][0]] -= min(end, stack[-1][1]) - event["ts"]
        stack.append((name, end))
        spent_us[name] += event["dur"]
        calls[name] += 1
    return spent_us, calls


def plain_name(name):
    """`loop_fusion.12` and `loop_fusion_7` count together; a C++ signature loses its arguments."""
    return re.sub(r"([._]\d+)+$", "", re.sub(r"^void ", "", name).split("(")[0])[:90]
