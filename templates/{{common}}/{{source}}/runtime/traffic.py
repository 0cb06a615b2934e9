"""What a compiled step sends to other devices, read from its HLO text. Times nothing.

XLA's own counts see the body of a loop once; here what stands in a loop counts for each turn. Bytes
are those that one device has to send if a collective is done in the best known way, a ring: what
really crosses a link may be more. Collectives between TPU slices are compiled to host transfers
("Megascale"), which name their kind and their slices; those are counted apart.
"""

import re
from collections import Counter
from dataclasses import dataclass

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf" = (.+?) ((?:ragged-)?(?:{KINDS}))(-start)?\(.*?(?:channel_id=(\d+)|$)")
# Slices 1 to 4, or slices 1 and 2: target="{1,2,3,4}x{0:3}", target={{100000,200000},...}
SEND = re.compile(
    r" = \((\S+), .*? send\(.*_xla_megascale_target=(?:\"\{|\{\{)([^}]*)\}.*_type=\"(\w+)\""
)
HEADER = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")
LOOP = re.compile(r"condition=%([\w.-]+), body=%([\w.-]+)")
TURNS = re.compile(r'known_trip_count":\{"n":"(\d+)"|= s32\[\]\S* constant\((\d+)\)')
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})")


@dataclass(frozen=True)
class Collective:
    """One of a program; a scanned one stands here once."""

    kind: str
    sent_bytes: float  # by one device, each time
    times: int  # a step
    between_slices: bool


def read_traffic(hlo: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program over `devices` devices."""
    found: dict[object, Collective] = {}
    for name, (times, lines) in _computations(hlo).items():
        for line in lines:
            if match := SEND.search(line):
                kind, n = match[3].lower().replace("_", "-"), _members(match[2])
                # Its shape is the operand's, that of the others the result's.
                size = _array_bytes(match[1])
                size *= n if kind == "all-gather" else 1 / n if kind == "reduce-scatter" else 1
                found[line] = Collective(kind, _sent(kind, size, n), times, True)
            elif match := COLLECTIVE.search(line):
                shape, kind, start, channel = match.groups()
                size, n = _array_bytes(shape, second_half=bool(start)), _group(line, devices)
                if name.startswith("all-reduce-scatter"):  # the fusion of a TPU that does both
                    kind, size = "reduce-scatter", size / n
                # An asynchronous one is spread over fusions, each with the whole of its text.
                key = (kind, channel) if channel else line
                if key not in found or found[key].times < times:
                    found[key] = Collective(kind, _sent(kind, size, n), times, False)
    return list(found.values())


def sent_bytes(collectives: list[Collective], *, between_slices: bool) -> float:
    """Bytes that one device sends in a step, within its slice or to other slices."""
    chosen = [c for c in collectives if c.between_slices == between_slices]
    return sum(c.sent_bytes * c.times for c in chosen)


def _computations(hlo: str) -> dict[str, tuple[int, list[str]]]:
    """Name -> how often a computation runs in a step, and its lines."""
    bodies: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        if not line.startswith((" ", "}")) and (header := HEADER.match(line)):
            lines = bodies[header[1]] = []
        elif line.startswith(" ") and bodies:
            lines.append(line)
    times: Counter[str] = Counter(list(bodies)[-1:])  # the entry comes last
    for name in reversed(bodies):  # what is called stands above its callers
        for line in bodies[name]:
            loop = LOOP.search(line)
            turns = _turns(line, bodies.get(loop[1], [])) if loop else 1
            for group in CALLED.findall(line):
                for called in re.findall(r"%([\w.-]+)", group):
                    times[called] += times[name] * turns
    return {name: (times[name], lines) for name, lines in bodies.items()}


def _turns(line: str, condition: list[str]) -> int:
    """Turns of a loop: as the compiler says, or the number that its counter is held against."""
    known = TURNS.findall("\n".join([line, *condition]))
    return max((int(a or b) for a, b in known), default=1)


def _array_bytes(shape: str, *, second_half: bool = False) -> float:
    """Bytes of a shape or of a tuple; of a `-start`, where operands come first, its results."""
    sizes = []
    for letters, bits, dims in ARRAY.findall(shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        if dims or not second_half:  # scalars there are marks of the runtime
            sizes.append(count * (1 if letters == "pred" else int(bits or 0) / 8))
    return sum(sizes[len(sizes) // 2 :] if second_half and len(sizes) > 1 else sizes)


def _group(line: str, devices: int) -> int:
    match = GROUPS.search(line)
    if match is None:
        return devices
    listed, size, mesh, axes = match.groups()
    if mesh is not None:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh))
        n = 1
        for axis in re.findall(r"'([^']+)'", axes):
            n *= int(sizes[axis])
        return n
    return int(size) if size else _members(listed)


def _members(listed: str) -> int:
    """Of "1,2" or "1:4"."""
    first, _, last = listed.partition(":")
    return int(last) - int(first) + 1 if last else len(first.split(","))


def _sent(kind: str, size: float, n: int) -> float:
    """Bytes that each of `n` members sends; `size` is that of the result."""
    if n < 2 and "permute" not in kind:
        return 0.0
    factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0}
    factors |= {"all-gather": (n - 1) / n, "all-to-all": (n - 1) / n}
    return size * factors.get(kind, 1.0)
