"""The Markdown tables of gpu.py's JSON. Measures nothing."""

from statistics import median

from grown import ratio, table

COLUMNS = (
    "shape x tokens a row",
    "parameters",
    "ours, tokens/s",
    "MFU",
    "`torch.compile`, tokens/s",
    "MFU",
    "ours / torch",
    "with cuDNN's kernel",
    "tokens at once, GB: ours; torch",
    "s to first loss, first / later turns: ours; torch",
)


def print_tables(results):
    """One row a case, then the saves, the command, the largest operations and what went wrong."""
    first = next((case["turns"] for case in results["cases"].values() if case["turns"]), {})
    versions = sorted({turns[0]["versions"] for turns in first.values() if turns})
    print(f"\n{results['gpu']}; {results['machine']}; {'; '.join(versions)}\n")
    rows = [case_row(name, case) for name, case in results["cases"].items()]
    table(COLUMNS, rows)
    for name, case in results["cases"].items():
        if saved := case.get("save, ours"):
            print(f"\nSave of {name}: {describe_save(saved)}")
    if command := results.get("command"):
        print(
            f"\n`acorn train demo`, some steps, its text prepared first: code {command['code']}, "
            f"first loss after {seconds(command['first_loss_s'])}, "
            f"all after {seconds(command['whole_s'])}"
        )
    for name, case in results["cases"].items():
        for side in ("ours", "torch"):
            if profile := case.get(f"profile, {side}"):
                print(
                    f"\nThe largest operations of {name}, {side}: "
                    f"{profile['busy_ms_per_step']:.1f} ms a step ({profile['source']})\n"
                )
                rows = [
                    [
                        f"`{found['name']}`",
                        f"{found['ms_per_step']:.2f}",
                        f"{found['share']:.1%}",
                        f"{found['calls_per_step']:.0f}",
                    ]
                    for found in profile["top"]
                ]
                table(("operation", "ms a step", "share", "calls"), rows)
    for problem in results["problems"]:
        print(f"\nNot measured: {problem}")


def case_row(name, case):
    """The medians of a case's turns, and of the rounds' ratios."""
    turns = case["turns"]
    ours, torch, cudnn = (turns.get(side, []) for side in ("ours", "torch", "torch, cudnn"))
    parameters = f"{case['facts']['parameters'] / 1e6:,.1f}M" if "facts" in case else ""
    return [
        name,
        parameters,
        *speed(ours),
        *speed(torch),
        beside(ours, torch),
        beside(ours, cudnn),
        f"{held(ours)}; {held(torch)}",
        f"{start(ours)}; {start(torch)}",
    ]


def speed(turns):
    """Tokens a second and MFU."""
    if not turns:
        return ["", ""]
    share = turns[0]["mfu"] and median(turn["mfu"] for turn in turns)
    rate = median(turn["tokens_per_s"] for turn in turns)
    return [f"{rate:,.0f}", f"{share:.1%}" if share else ""]


def beside(ours, theirs):
    """Our speed to theirs, as the median over the rounds that both have."""
    pairs = list(zip(ours, theirs, strict=False))
    if not pairs:
        return ""
    seconds_a_step = [[turn["step_s"] for turn in turns] for turns in zip(*pairs, strict=True)]
    return f"{ratio(seconds_a_step[1], seconds_a_step[0]):.2f}"


def held(turns):
    """Tokens of a micro-batch and peak memory."""
    if not turns:
        return "-"
    peak = turns[-1]["peak_bytes"]
    return f"{turns[-1]['micro_tokens']:,}" + (f", {peak / 1e9:.1f}" if peak else "")


def start(turns):
    """Seconds to the first loss: of the first turn, then the median of those that find programs."""
    later = [turn["first_loss_s"] for turn in turns[1:]]
    words = [f"{turns[0]['first_loss_s']:.0f}"] if turns else ["-"]
    return " / ".join(words + ([f"{median(later):.0f}"] if later else []))


def describe_save(saved):
    """One line on a save."""
    if saved["error"]:
        return f"failed: {saved['error']}"
    during = saved["step_ms_during"]
    then = f"{during:.1f} ms while it ran" if during else "no step ended while it ran"
    return (
        f"{saved['written_bytes'] / 1e9:.3f} GB, steps blocked for {saved['blocking_ms']:.0f} ms, "
        f"committed after {saved['until_committed_s']:.1f} s; {saved['step_ms_without']:.1f} ms a "
        f"step without it, {then} ({saved['steps_during']} steps, "
        f"the slowest {seconds(saved['slowest_step_ms_during'], 1e3)})"
    )


def seconds(value, scale=1.0):
    """Text, also of a time that was never reached."""
    return "-" if value is None else f"{value / scale:.2f} s"
