"""Collectives of a compiled program, from its HLO text: what kind, how often, how many bytes.

A loop stands in the text once, so calls are followed from the entry, each loop times its trips. A
loop that may end early (decoding) counts with the most trips that it can make.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s64": 8, "u64": 8, "s16": 2}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"^\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_LATER_HALF = re.compile(r" async-(update|done)\(")  # names the computation of its start again
_CALLS = re.compile(r"(body|condition|calls|to_apply|[a-z_]+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= s(?:32|64)\[\](?:\{[^}]*\})? constant\((\d+)\)")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a step. bytes: of its whole result on a device, each time; group: how many
    devices take part; times: how often in a step; op: the operation that it was made for."""

    kind: str
    bytes: int
    group: int
    times: int
    op: str


def collectives(hlo: str) -> list[Collective]:
    """All collectives of a program in HLO text, largest first. Those over one device are no-ops."""
    bodies, entry = _computations(hlo)
    times = _times(bodies, entry)
    found: dict[str, Collective] = {}
    for name, lines in bodies.items():
        for line in lines:
            match = _COLLECTIVE.match(line)
            if not match or not times[name]:
                continue
            shape, kind, is_start = match.groups()
            # A TPU runs one collective beside a chain of products; each of them names it again.
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[0] if channel else line
            op = re.search(r'op_name="([^"]*)"', line)
            size, group = _result_bytes(kind, shape, bool(is_start)), _group(line)
            if kind == "reduce-scatter":
                size *= group
            one = Collective(kind, size, group, times[name], op[1] if op else "")
            if group > 1 and key not in found:
                found[key] = one
    return sorted(found.values(), key=lambda c: -c.bytes * c.times)


def summary(found: Iterable[Collective]) -> list[Collective]:
    """Collectives alike in kind, group and number of times as one, `op` saying how many they are.

    bytes: of all of them, each time.
    """
    alike: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for one in found:
        alike[one.kind, one.group, one.times].append(one.bytes)
    rows = [
        Collective(kind, sum(sizes), group, times, f"{len(sizes)}")
        for (kind, group, times), sizes in alike.items()
    ]
    return sorted(rows, key=lambda c: -c.bytes * c.times)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation, and which is the entry."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line.strip().removeprefix("ROOT "))
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs in one call of the program."""
    times: Counter[str] = Counter({entry: 1})
    callers = {name: list(_called(lines, bodies)) for name, lines in bodies.items()}
    for name in _from_the_top(callers, entry):
        for callee, trips in callers[name]:
            times[callee] += times[name] * trips
    return times


def _called(lines: Iterable[str], bodies: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    for line in lines:
        if _LATER_HALF.search(line):
            continue
        calls = [
            (role, name.strip(" %"))
            for role, names in _CALLS.findall(line)
            for name in names.strip("{}").split(",")
        ]
        trips = 1
        if " while(" in line:
            condition = next((name for role, name in calls if role == "condition"), "")
            trips = _trips(line, bodies.get(condition, []))
        yield from ((name, trips) for _, name in calls if name in bodies)


def _trips(loop: str, condition: Iterable[str]) -> int:
    """The trips of a loop: known to XLA, or the number that its counter is compared with."""
    if known := _TRIPS.search(loop):
        return int(known[1])
    return max((int(n) for line in condition for n in _CONSTANT.findall(line)), default=1)


def _from_the_top(callers: dict[str, list[tuple[str, int]]], entry: str) -> list[str]:
    """Computations, each after all that call it."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for callee, _ in callers[name]:
                visit(callee)
            order.append(name)

    visit(entry)
    return order[::-1]


def _result_bytes(kind: str, shape: str, is_start: bool) -> int:
    sizes = [
        math.prod(int(side) for side in sides.split(",") if side) * _BYTES.get(dtype, _width(dtype))
        for dtype, sides in _ARRAY.findall(shape)
    ]
    if is_start and kind in ("all-gather", "collective-permute"):  # (operand, result, …)
        return max(sizes, default=0)
    return sum(sizes)


def _width(dtype: str) -> int:
    return 1 if dtype.endswith("8") or dtype.startswith("f8") else 4


def _group(line: str) -> int:
    """How many devices exchange with each other."""
    if " collective-permute" in line:
        return 2
    text = line.partition("replica_groups=")[2]
    if named := re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", named[2]))
    if listed := re.match(r"\[([\d,]+)\]<=", text):
        return int(listed[1].split(",")[-1])
    if first := re.match(r"\{\{([\d,]*)\}", text):
        return len(first[1].split(","))
    return 1
