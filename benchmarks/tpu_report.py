"""The report of one program compiled for a TPU, and its row in a table (``tpu_programs``)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tpu_hlo
import tpu_schedule
from common import Cell, cell
from tpu_chips import CHIPS, flops_per_token, make_engine, route_of

_SHORT, _LONG = 1, 3  # layers of the programs whose difference is two layers


class Options(NamedTuple):
    """What is common to the programs of a table.

    Attributes:
      chip: a name in ``CHIPS``.
      layers: of the program that is in memory.
      dtype, route, data, model: as of ``make_engine``.
      schedules: directory to which libtpu writes schedules; None for none.
      rounds: as of ``tpu_schedule.schedule``.
      whole_only: whether figures per layer are left out, with their two programs.
    """

    chip: str
    layers: int
    dtype: str
    route: str | None
    data: int = 1
    model: int = 1
    schedules: Path | None = None
    rounds: int = 1
    whole_only: bool = False


class Layer(NamedTuple):
    """Figures of one layer and of what is outside of the layers, per chip.

    Attributes:
      kb_per_token_layer, kb_per_token_outside, gb_outside: accessed, thousands and 10^9 of bytes.
      copies_per_layer, copied_mb_per_layer: layout copies and transposes, and what they write.
      memory_ms, matmul_ms: per layer, of the bytes and of the arithmetic at the chip's peaks.
      estimated_tokens_per_s: of a step of all layers in which each takes the longer of the two; of
        all chips.
      kernels: Pallas kernels by name, calls per layer.
      untrue_costs: kernels whose declared bytes are not those of their arrays.
      xla_kcycles: thousand cycles per layer by the compiler's estimate, without Pallas kernels.
      kernel_kcycles: thousand cycles per layer of each Pallas kernel; {} without schedules.
      open_loops: loops of these that were counted as ``Options.rounds`` rounds.
      static_tokens_per_s: of a step whose layers take these cycles; None where the clock or a
        schedule is unknown.
    """

    kb_per_token_layer: float
    kb_per_token_outside: float
    gb_outside: float
    copies_per_layer: float
    copied_mb_per_layer: float
    memory_ms: float
    matmul_ms: float
    estimated_tokens_per_s: float
    kernels: dict[str, float]
    untrue_costs: list[str]
    xla_kcycles: float
    kernel_kcycles: dict[str, float]
    open_loops: int
    static_tokens_per_s: float | None


class Report(NamedTuple):
    """The report of one program.

    Attributes:
      chip, rows, tokens, slots, tasks, route: the program.
      layer: figures per layer; None where it does not compile, and with ``whole_only``.
      temp_gb, memory_gb: gigabytes per chip, of temporaries and of everything.
      fits: whether the chip has that memory.
      float32_matmuls, collectives: numbers of operations; collectives by name.
      seconds: time to compile.
      problem: the reason why the program is unusable, or "".
    """

    chip: str
    rows: int
    tokens: int
    slots: int
    tasks: bool
    route: str
    layer: Layer | None
    temp_gb: float
    memory_gb: float
    fits: bool
    float32_matmuls: int
    collectives: dict[str, int]
    seconds: float
    problem: str

    def flat(self) -> dict[str, Any]:
        """Return all figures by name, those of the layer among them."""
        values = self._asdict()
        layer = values.pop("layer")
        names = Layer._fields
        return values | (layer._asdict() if layer else dict.fromkeys(names))


def compile_one(options: Options, rows: int, tokens: int, slots: int, tasks: bool) -> Report:
    """Compile one program, as it is and with few layers, and report on it."""
    from jina_jax.runtime.engine import Program

    program = Program(rows, tokens, slots, None, tasks, "mean")
    forms = [(options.layers, True)]
    forms += [] if options.whole_only else [(_SHORT, False), (_LONG, False)]
    start = time.perf_counter()
    route = options.route or ""
    try:
        engines = [engine_of(options, layers, scan) for layers, scan in forms]
        route = route_of(engines[0], program).name
        lowered = [engine.lower(program) for engine in engines]
        with ThreadPoolExecutor(len(forms)) as pool:
            whole, *unrolled = pool.map(lambda own: own.compile(), lowered)
    except Exception as error:  # the compiler's refusal is the result
        reason = f"does not compile: {str(error).splitlines()[0][:200]}"
        seconds = time.perf_counter() - start
        place = (options.chip, rows, tokens, slots, tasks, route)
        return Report(*place, None, 0.0, 0.0, False, 0, {}, seconds, reason)
    seconds = time.perf_counter() - start
    layer = per_layer(options, program, *unrolled) if unrolled else None
    return report(options, program, route, lowered[0].as_text(), whole, layer, seconds)


def engine_of(options: Options, layers: int, scan: bool) -> Any:
    """Return an engine for a program of these options."""
    return make_engine(
        *(options.chip, layers),
        scan=scan,
        dtype=options.dtype,
        route=options.route,
        data=options.data,
        model=options.model,
    )


def report(
    options: Options,
    program: Any,
    route: str,
    stablehlo: str,
    whole: Any,
    layer: Layer | None,
    seconds: float,
) -> Report:
    """Return the report of a program, from its compiled forms."""
    memory = whole.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    fits = size <= CHIPS[options.chip].memory
    matmuls = tpu_hlo.float32_matmuls(stablehlo)
    collectives = tpu_hlo.count_collectives(whole.as_text())
    problems = [f"{matmuls} float32 matmuls"] if matmuls else []
    problems += [] if fits else [f"needs {size / 1e9:.1f} GB"]
    problems += tpu_hlo.unwanted(collectives, options.model)
    place = (options.chip, program.rows, program.tokens, program.slots, program.with_adapters)
    sizes = (memory.temp_size_in_bytes / 1e9, size / 1e9, fits)
    return Report(*place, route, layer, *sizes, matmuls, collectives, seconds, "; ".join(problems))


def per_layer(options: Options, program: Any, short: Any, long: Any) -> Layer:
    """Compare programs of one layer and of three."""
    chip = CHIPS[options.chip]
    tokens = program.rows * program.tokens / options.data
    texts = [own.as_text() for own in (short, long)]

    def halved(values: Sequence[float]) -> float:
        return (values[1] - values[0]) / (_LONG - _SHORT)

    accessed = [own.cost_analysis().get("bytes accessed", 0.0) for own in (short, long)]
    copies, copied = zip(*map(tpu_hlo.count_copies, texts), strict=True)
    layer = halved(accessed)
    outside = accessed[0] - _SHORT * layer
    flops = tokens * flops_per_token(program.tokens, 1, program.with_adapters) / options.model
    memory, matmul = layer / chip.bandwidth, flops / chip.flops
    step = options.layers * max(memory, matmul) + outside / chip.bandwidth
    calls = [tpu_hlo.pallas_calls(text) for text in texts]
    xla = [tpu_hlo.estimated_cycles(text) for text in texts]
    return Layer(
        *(layer / tokens / 1e3, outside / tokens / 1e3, outside / 1e9),
        *(halved(copies), halved(copied) / 1e6),
        *(memory * 1e3, matmul * 1e3, program.rows * program.tokens / step),
        kernels=by_kernel(calls, lambda call: 1.0, halved),
        untrue_costs=tpu_hlo.untrue_costs(texts[0]),
        xla_kcycles=halved(xla) / 1e3,
        **static_cycles(options, program, xla, calls, halved),
    )


def by_kernel(
    calls: Sequence[Sequence[tpu_hlo.PallasCall]],
    measure: Callable[[tpu_hlo.PallasCall], float],
    halved: Callable[[Sequence[float]], float],
) -> dict[str, float]:
    """Add a measure up for the calls of a layer, by kernel."""
    names = dict.fromkeys(call.kernel for call in calls[1])
    sums = {
        name: halved([sum(measure(own) for own in part if own.kernel == name) for part in calls])
        for name in names
    }
    return {name: value for name, value in sums.items() if value}


def static_cycles(
    options: Options,
    program: Any,
    xla: Sequence[int],
    calls: Sequence[Sequence[tpu_hlo.PallasCall]],
    halved: Callable[[Sequence[float]], float],
) -> dict[str, Any]:
    """Read the schedules of the kernels, and add their cycles to the compiler's estimates."""
    none = {"kernel_kcycles": {}, "open_loops": 0, "static_tokens_per_s": None}
    if options.schedules is None:
        return none
    every = list(itertools.chain(*calls))
    schedules = tpu_schedule.read_schedules(
        options.schedules, {call.name for call in every}, options.rounds
    )
    # libtpu writes one schedule for calls that are alike.
    known = {call.signature: schedules[call.name] for call in every if call.name in schedules}
    if any(call.signature not in known for call in every):
        return none
    cycles = by_kernel(calls, lambda call: float(known[call.signature].cycles), halved)
    total = [
        own + sum(known[call.signature].cycles for call in part)
        for own, part in zip(xla, calls, strict=True)
    ]
    layer = halved(total)
    step = total[0] + (options.layers - _SHORT) * layer
    clock = CHIPS[options.chip].clock
    return {
        "kernel_kcycles": {name: value / 1e3 for name, value in cycles.items()},
        "open_loops": sum(own.open_loops for own in known.values()),
        "static_tokens_per_s": clock and program.rows * program.tokens * clock / step,
    }


def shape(program: Any) -> str:
    """Format B x T x S."""
    return f"{program.rows} x {program.tokens} x {program.slots}"


def line(row: Report, *, first: bool) -> str:
    """Return a row of the table, after the header if it is the first."""
    cells = cells_of(row)
    rows = [list(cells), ["---"] * len(cells)] if first else []
    rows.append([cell(value) for value in cells.values()])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cells_of(row: Report) -> dict[str, Cell]:
    """Return the cells of a row by their heads."""
    layer = row.layer
    cells: dict[str, Cell] = {
        "chip": row.chip,
        "B x T x S": shape(row),
        "tasks": "yes" if row.tasks else "no",
        "attention": row.route,
        "temporaries GB": row.temp_gb,
        "memory GB": row.memory_gb,
        "KB per token, layer": layer and layer.kb_per_token_layer,
        "outside": layer and layer.kb_per_token_outside,
        "outside GB": layer and layer.gb_outside,
        "copies per layer": layer and f"{layer.copies_per_layer:g}",
        "copied MB": layer and layer.copied_mb_per_layer,
        "memory ms": layer and layer.memory_ms,
        "matmul ms": layer and layer.matmul_ms,
        "tok/s at best, compiler's estimate": layer and layer.estimated_tokens_per_s,
        "XLA kcycles": layer and layer.xla_kcycles,
        "kernels, kcycles": layer and kernel_cell(layer),
        "tok/s by static cycles": layer and layer.static_tokens_per_s,
        "float32 matmuls": row.float32_matmuls,
        "collectives": ", ".join(f"{n} {name}" for name, n in row.collectives.items()) or "none",
        "problem": row.problem or "none",
    }
    return cells


def kernel_cell(layer: Layer) -> str:
    """Format the kernels of a layer with their calls and cycles."""
    found = []
    for name, calls in layer.kernels.items():
        cycles = layer.kernel_kcycles.get(name)
        of = "" if cycles is None else f" {cycles:,.0f}" + ("+" if layer.open_loops else "")
        found.append((f"{calls:g} x " if calls != 1 else "") + name + of)
    return ", ".join(found) or "none"
