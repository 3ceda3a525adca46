"""Figures read off the text of programs for TPUs: StableHLO, and HLO after optimisation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_DOT = re.compile(r"stablehlo\.(?:dot_general|dot|convolution)\b.*: \(([^)]*)\) ->")
# Bits of the type, dimensions, and their order in a transpose. Prefetches, copy-start, keep the
# layout and are ignored.
_COPY = re.compile(
    r" = [a-z]+(\d*)\w*\[([\d,]*)\]\S* (?:copy\(|transpose\(.*dimensions=\{([\d,]*)\})"
)
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast|send|recv)(?:-start)?\("
)
# Tensor parallelism: after the second matmul of each pair.
_SUMS_PER_LAYER = 2
# Name, type, operation, operands and attributes; metadata of Pallas may contain line breaks.
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\(([^)]*)\)(.*?)"
    r"(?=^\s+(?:ROOT )?%[\w.\-]+ = |^\}|\Z)",
    re.MULTILINE | re.DOTALL,
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_DECLARED = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')
_PALLAS = 'custom_call_target="tpu_custom_call"'
# Kernels shipped with jax, which declare no cost.
FOREIGN = ("splash_",)


class Instruction(NamedTuple):
    """An instruction of optimised HLO: its name, and text of its parts."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    attributes: str


class PallasCall(NamedTuple):
    """A call of a kernel written in Pallas.

    Attributes:
      name: of its instruction.
      kernel: the same without its number.
      signature: the kernel with the types of its results and operands, layouts left out: calls of
        one signature have one schedule.
      declared: bytes that its ``cost_estimate`` declares; None if there is none.
      touched: bytes of its results and of its operands, each array once.
    """

    name: str
    kernel: str
    signature: str
    declared: int | None
    touched: int


def float32_matmuls(stablehlo: str) -> int:
    """Count matmuls and convolutions with a float32 operand."""
    operands = (match[1] for match in map(_DOT.search, stablehlo.splitlines()) if match)
    return sum("xf32>" in types for types in operands)


def count_copies(hlo: str) -> tuple[int, int]:
    """Count copies and transposes in optimised HLO, and the bytes that they write."""
    found = [(bits, _numbers(dims), _numbers(order)) for bits, dims, order in _COPY.findall(hlo)]
    # A transpose may keep the order of its axes; a type without bits is pred, of one byte.
    sizes = [
        int(bits or 8) * math.prod(dims) // 8
        for bits, dims, order in found
        if not order or order != sorted(order)
    ]
    return len(sizes), sum(sizes)


def count_collectives(hlo: str) -> dict[str, int]:
    """Count collective operations in optimised HLO, by name."""
    names = _COLLECTIVE.findall(hlo)
    return {name: names.count(name) for name in sorted(set(names))}


def unwanted(collectives: dict[str, int], model: int) -> list[str]:
    """Describe differences from the collectives that ``model`` chips with shared weights need."""
    wanted = {"all-reduce": _SUMS_PER_LAYER} if model > 1 else {}
    return [
        f"{collectives.get(name, 0)} {name}, expected {wanted.get(name, 0)}"
        for name in sorted(collectives.keys() | wanted.keys())
        if collectives.get(name, 0) != wanted.get(name, 0)
    ]


def estimated_cycles(hlo: str) -> int:
    """Add up the compiler's estimates for the operations of the entry; of Pallas it has none."""
    found = (_CYCLES.search(own.attributes) for own in _entry(hlo))
    return sum(int(match[1]) for match in found if match)


def pallas_calls(hlo: str) -> list[PallasCall]:
    """List the calls of Pallas kernels in optimised HLO, those within loops once."""
    types: dict[str, str] = {}
    sources: dict[str, str] = {}  # of arrays that are others by another name
    calls = []
    for own in _instructions(hlo):
        types[own.name] = own.type
        if own.operation == "bitcast":
            sources[own.name] = sources.get(own.operands[0], own.operands[0])
        if _PALLAS in own.attributes:
            calls.append(_pallas_call(own, types, sources))
    return calls


def _pallas_call(own: Instruction, types: dict[str, str], sources: dict[str, str]) -> PallasCall:
    declared = _DECLARED.search(own.attributes)
    kernel = re.sub(r"(\.\d+)+$", "", own.name)
    # The kernel may read one array by several operands.
    arrays = {sources.get(name, name): types.get(name, "") for name in own.operands}
    inputs = [_shapes(types.get(name, "")) for name in own.operands]
    return PallasCall(
        *(own.name, kernel, f"{kernel}({', '.join(inputs)}) -> {_shapes(own.type)}"),
        declared=int(declared[1]) if declared else None,
        touched=sum(map(array_bytes, [own.type, *arrays.values()])),
    )


def untrue_costs(hlo: str, tolerance: float = 0.01) -> list[str]:
    """Describe the kernels whose declared bytes differ from those of their operands and results.

    Kernels whose names begin as one of ``FOREIGN`` may declare nothing.

    Args:
      hlo: a compiled program.
      tolerance: of the difference, relative; for numbers that a kernel gets beside its arrays.
    """
    problems = []
    for call in pallas_calls(hlo):
        if call.declared is None:
            if not call.kernel.startswith(FOREIGN):
                problems.append(f"{call.name} declares no cost, it touches {call.touched} bytes")
        elif abs(call.declared - call.touched) > tolerance * call.touched:
            problems.append(f"{call.name} declares {call.declared} bytes, touches {call.touched}")
    return problems


def array_bytes(type_: str) -> int:
    """Return the bytes of the arrays in an HLO type, without the padding of their tiles."""
    return sum(
        int(bits or 8) * math.prod(_numbers(dims)) // 8 for _, bits, dims in _ARRAY.findall(type_)
    )


def _shapes(type_: str) -> str:
    return " ".join(f"{name}[{dims}]" for name, _, dims in _ARRAY.findall(type_))


def _entry(hlo: str) -> Iterator[Instruction]:
    start = hlo.find("\nENTRY ")
    return _instructions(hlo[max(start, 0) :])


def _instructions(hlo: str) -> Iterator[Instruction]:
    for name, type_, operation, operands, attributes in _INSTRUCTION.findall(hlo):
        names = re.findall(r"%([\w.\-]+)", operands)
        yield Instruction(name, type_, operation, tuple(names), attributes)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
