"""Compiled scoring, where llvmlite is installed (numba brings it): decoding and contraction fused, in registers.

Imported when it is first needed; without llvmlite `lorif_core.scoring` gives the same scores with torch alone, more slowly.
Nothing is compiled at installation: the first query over layers of a shape does it, in some tenths of a second.

Axes: Q queries, n rows, c factor rank, k the shorter projected side, j the longer one, D = d1 d2.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lorif_core.codecs import FLOATS
from lorif_core.errors import StoreError
from lorif_core.manifest import LayerEntry
from lorif_core.shards import Shard

if TYPE_CHECKING:
    from lorif_core.kernel_code import Kernel as Written

log = logging.getLogger(__name__)

FEW_QUERIES = 12
"""Up to here the kernel of whole gradients is faster than a dense product for all queries at once."""
FEW_COLUMNS = 128
"""Factor columns times queries up to here, kernels of factors are faster than dense rows, made once for all queries, in a
dense product. Those of one column always are: they do the dense product's multiplications, and make no dense rows."""
LONGEST = 1024
"""Numbers of all columns of the longer side: beyond, decoded rows would leave the cache. Such layers are left to torch."""


@cache
def available() -> bool:
    """Whether llvmlite is installed."""
    try:
        import llvmlite  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class Kernel:
    """What adds the products of layers of one shape with some queries."""

    queries: list[Tensor]
    """Of each layer, in the kernel's order, float32 [Q, ...], contiguous."""
    tensors: tuple[tuple[str, ...], ...]
    """That it reads of each."""
    rows: int
    """It scores at once: behind each query's scores there is room up to a multiple."""
    room: int
    """Bytes it touches behind the rows it is given."""
    code: Callable[..., None]

    def add_scores(self, shard: Shard, start: int, scores: Tensor) -> None:
        """Add <Q_q, G_i>, summed over the layers, of a shard's rows start, start + 1, ... to `scores` [Q, n], float32.

        Args:
            shard: the rows'.
            start: the first of them.
            scores: added to. What lies behind each query's, up to a multiple of `self.rows`, is overwritten.

        Raises:
            StoreError: the file ends before them.
        """
        stop = start + scores.shape[1]
        layers = list(zip((x.data_ptr() for x in self.queries), self.tensors, strict=True))
        mapped = shard.file.ready()
        for some in [layers] if mapped else [[layer] for layer in layers]:  # copies of a layer at a time
            addresses, copies = [], []
            for queries, names in some:
                addresses.append(queries)
                for name in names:
                    begin, end = shard.span(name, start, stop)
                    address = shard.file.address(begin, end + self.room) if mapped else None
                    if address is None:
                        copies.append(shard.file.read(begin, end, self.room))
                        address = copies[-1].data_ptr()
                    addresses.append(address)
            table = (ctypes.c_int64 * len(addresses))(*addresses)
            self.code(scores.data_ptr(), table, len(some), *scores.shape, scores.stride(0))
        if mapped and shard.file.shrunk():  # what was added may be zeros
            for name in (name for names in self.tensors for name in names):
                shard.read(name, start, stop)  # says what is wrong
            raise StoreError(f"{shard.file.path}: could not be read for a moment; ask again")


def suits(layer: LayerEntry, queries: int) -> bool:
    """Whether a kernel is faster than torch for so many queries, and the layer not too large for one."""
    if queries > FEW_QUERIES if layer.rank == 0 else layer.rank > 1 and layer.rank * queries > FEW_COLUMNS:
        return False
    return layer.rank * max(layer.d1, layer.d2) <= LONGEST


def prepare(layers: Iterable[LayerEntry], bits: int, queries: Mapping[str, Tensor]) -> list[Kernel]:
    """The kernels of some layers, one for those of a shape, for queries [Q, d1, d2] of each, float32."""
    from lorif_core import kernel_factors, kernel_whole

    shapes: dict[tuple[int, int, int], list[LayerEntry]] = {}
    for layer in layers:
        shapes.setdefault((layer.d1, layer.d2, layer.rank), []).append(layer)
    found = []
    for (d1, d2, rank), same in shapes.items():
        stored = ("codes", "scale") if bits not in FLOATS else ("left", "right") if rank else ("gradient",)
        given = (queries[layer.name] for layer in same)
        ordered = [kernel_factors.arranged(x) if rank else kernel_whole.arranged(x, bits) for x in given]
        names = tuple(tuple(f"{name}.{layer.name}" for name in stored) for layer in same)
        kernel, code = _compiled(d1, d2, rank, bits)
        found.append(Kernel(ordered, names, kernel.rows, kernel.room, code))
    return found


@cache
def _compiled(d1: int, d2: int, rank: int, bits: int) -> tuple[Written, Callable[..., None]]:
    """The kernel for layers of a shape, and its function."""
    from lorif_core.kernel_code import ENTRY
    from lorif_core.kernel_factors import factors
    from lorif_core.kernel_whole import whole

    begin = time.perf_counter()
    kernel = factors(d1, d2, rank, bits) if rank else whole(d1 * d2, bits)
    engine = _engine(kernel.text, ENTRY)
    _engines.append(engine)  # the code lives as long as it
    kinds = [*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 4]
    log.debug("kernel for %d x %d, rank %d, %d bits ready in %.2f s", d1, d2, rank, bits, time.perf_counter() - begin)
    return kernel, ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(ENTRY))


_engines: list[Any] = []


def _engine(text: str, entry: str) -> Any:
    """A module of LLVM's language, optimised and compiled for this machine's processor."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)
    module = llvm.parse_assembly(text)
    module.verify()
    passes = llvm.create_new_function_pass_manager()  # the code is unrolled as it should be: all others only cost time
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    tuning = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    passes.run(module.get_function(entry), tuning)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
