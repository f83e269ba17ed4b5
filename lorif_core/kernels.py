"""Compiled scoring, where llvmlite is installed (numba brings it): decoding and contraction fused, in registers.

Imported when it is first needed; without llvmlite `lorif_core.scoring` gives the same scores with torch alone, more slowly.
Nothing is compiled at installation: the first query over layers of a shape does it, in a tenth of a second.

Axes: Q queries, n rows, c factor rank, k the shorter projected side, j the longer one, D = d1 d2.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lorif_core.codecs import FLOATS
from lorif_core.errors import StoreError
from lorif_core.manifest import LayerEntry
from lorif_core.shards import Shard

log = logging.getLogger(__name__)

FEW_QUERIES = 12
"""Up to here every kernel is faster than a dense product for all queries at once; one of single-column factors always is,
doing no more multiplications at about the same rate, and making no dense rows."""
CHUNK = 2**18
"""Bytes that are read at a time, to be still in the core's cache when they are decoded."""
LONGEST = 1024
"""Numbers of all columns of the longer side: beyond, the code of a kernel would be too long. Such layers are left to torch."""
HIGHEST_RANK = 8
"""C at most, for the same reason."""


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
    """What adds one layer's products with some queries."""

    queries: Tensor
    """In the kernel's order, float32 [Q, ...], contiguous."""
    tensors: tuple[str, ...]
    """That it reads."""
    memory: int
    """Bytes it reads them to, some rows at a time."""
    code: Callable[..., int]

    def add_scores(self, shard: Shard, start: int, scores: Tensor, memory: Tensor) -> None:
        """Add <Q_q, G_i> of a shard's rows start, start + 1, ... to `scores` [Q, n], float32, contiguous.

        Args:
            shard: the rows'.
            start: the first of them.
            scores: added to.
            memory: uint8, at least `self.memory`; the same for all calls of a thread, so that it stays in cache.

        Raises:
            StoreError: the file ends before them.
        """
        count, n = scores.shape
        addresses = [x.data_ptr() for x in (scores, self.queries, memory)]
        offsets = [shard.offset(name, start) for name in self.tensors]
        done = self.code(*addresses, shard.descriptor, *offsets, count, n)
        if done < n:
            for name in self.tensors:
                shard.read(name, start + done, start + n)  # says what is wrong
            raise StoreError(f"{shard.path}: could not be read for a moment; ask again")


def prepare(layer: LayerEntry, bits: int, queries: Tensor) -> Kernel | None:
    """The kernel for queries [Q, d1, d2], float32; None where the layer is too large for one, or torch is faster."""
    if layer.rank != 1 and len(queries) > FEW_QUERIES:
        return None
    if layer.rank > HIGHEST_RANK or layer.rank * max(layer.d1, layer.d2) > LONGEST:
        return None
    from lorif_core.kernel_code import LANES

    ordered = (queries if layer.d1 <= layer.d2 else queries.mT) if layer.rank else queries.flatten(1)
    ordered = torch.nn.functional.pad(ordered, (0, -ordered.shape[-1] % LANES)).contiguous()
    stored = ("codes", "scale") if bits not in FLOATS else ("left", "right") if layer.rank else ("gradient",)
    code, memory = _compiled(layer.d1, layer.d2, layer.rank, bits, CHUNK)
    return Kernel(ordered, tuple(f"{name}.{layer.name}" for name in stored), memory, code)


@cache
def _compiled(d1: int, d2: int, rank: int, bits: int, chunk: int) -> tuple[Callable[..., int], int]:
    """The function of `lorif_core.kernel_code` for layers of a shape, and its memory in bytes."""
    from lorif_core import kernel_code

    begin = time.perf_counter()
    kernel = kernel_code.factors(d1, d2, rank, bits, chunk) if rank else kernel_code.whole(d1 * d2, bits, chunk)
    engine = _engine(kernel.text, kernel_code.ENTRY)
    _engines.append(engine)  # the code lives as long as it
    tensors = 1 if bits in FLOATS and not rank else 2
    sizes = [*[ctypes.c_void_p] * 3, ctypes.c_int, *[ctypes.c_int64] * (tensors + 2)]
    log.debug("kernel for %d x %d, rank %d, %d bits ready in %.2f s", d1, d2, rank, bits, time.perf_counter() - begin)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *sizes)(engine.get_function_address(kernel_code.ENTRY)), kernel.memory


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
