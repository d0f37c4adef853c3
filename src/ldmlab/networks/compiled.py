"""Networks made faster by PyTorch's compiler, block by block, and by CUDA graphs (`runtime.compile`).

A block (residual block, attention, transformer block) is one graph of its own: what the compiler fuses lies within blocks, a block
compiles in seconds, and nothing is compiled again for other times, batch or latent sizes. A class says `one_graph = True` of itself.

At small batches a GPU waits for the host, which launches some 1 600 kernels a step. A CUDA graph is launched as one.

Shape letters: B batch, C channels, H W space.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldmlab.errors import ConfigError

SMALL = 2**14  # latent positions a micro-batch up to which training is launch-bound: at f = 16 on 256 px, 64 images
KEPT = 4  # recordings of one network: of guided and unguided calls, whole and last batches
WARM_UPS = 3  # calls before a recording, in which libraries choose their kernels (PyTorch's own number)


def compile_blocks(network: nn.Module, graphs: bool = False, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the blocks of a network in place; how many there are. Names and weights stay as they are.

    graphs: replay the blocks as CUDA graphs too: for training with one forward pass a step, always of the same shape.
    Raises ConfigError with a PyTorch that keeps the graphs of equal blocks in one place, which overflows.
    """
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise ConfigError("runtime.compile needs PyTorch 2.15 or newer. Update it, or use runtime.compile=false.")
    from torch.fx.experimental import _config

    _config.use_duck_shape = False  # two sizes that happen to be equal once (height, features) are not equal for ever
    blocks = [module for module in network.modules() if getattr(type(module), "one_graph", False)]
    mode = "reduce-overhead" if graphs else None
    for block in blocks:
        block.compile(fullgraph=True, dynamic=not graphs, backend=backend, mode=mode, isolate_recompiles=True)
    if graphs:
        network.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
    return len(blocks)


class Recording(NamedTuple):
    """Inputs at fixed addresses, what was made of them there, and how to do it again."""

    given: list[Tensor]
    made: Tensor
    replay: Callable[[], None]


Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Work on tensors at fixed addresses → its result, at an address of its own, and how to do the work again."""


def record_cuda(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """`Record` by a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()
    return made, graph.replay


class Replayed:
    """`network(z, t, cond)` recorded at its first call for each shape and replayed after that, for weights that stay.

    Calls that need gradients go to the network itself. cond: tensors in dataclasses, dicts, lists and tuples, and None.
    """

    def __init__(self, network: nn.Module, record: Record = record_cuda):
        self.network, self.record = network, record
        self._recordings: dict[Any, Recording] = {}
        self._last: tuple[Any, Any] = (
            None,
            None,
        )  # of the condition that lies at the fixed addresses: recording, object

    def __call__(self, z_BCHW: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        if torch.is_grad_enabled() and z_BCHW.requires_grad:
            return self.network(z_BCHW, t_B, cond)
        told = tensors_of(cond)
        autocast = torch.is_autocast_enabled(z_BCHW.device.type)
        key = (autocast, tuple((x.shape, x.dtype, x.stride()) for x in (z_BCHW, t_B, *told)))
        if key not in self._recordings:
            self._recordings[key] = self._recorded(z_BCHW, t_B, cond)
            while len(self._recordings) > KEPT:
                del self._recordings[next(iter(self._recordings))]
        recording = self._recordings[key]
        now = (key, cond)
        same = self._last[0] == key and self._last[1] is cond
        for mine, theirs in zip(recording.given, (z_BCHW, t_B) if same else (z_BCHW, t_B, *told), strict=False):
            mine.copy_(theirs)
        self._last = now
        recording.replay()
        return recording.made.clone()

    def _recorded(self, z_BCHW: Tensor, t_B: Tensor, cond: Any) -> Recording:
        with torch.no_grad():
            z, t, fixed = z_BCHW.clone(), t_B.clone(), with_tensors(cond, [x.clone() for x in tensors_of(cond)])
            made, replay = self.record(lambda: self.network(z, t, fixed))
        return Recording([z, t, *tensors_of(fixed)], made, replay)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a condition, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for part in _parts(tree) for tensor in tensors_of(part)]


def with_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    """The same condition of other tensors, taken from the front of the list."""
    if isinstance(tree, Tensor):
        return tensors.pop(0)
    parts = [with_tensors(part, tensors) for part in _parts(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(
            tree, **dict(zip((f.name for f in dataclasses.fields(tree) if f.init), parts, strict=True))
        )
    if isinstance(tree, dict):
        return dict(zip(tree, parts, strict=True))
    return type(tree)(parts) if isinstance(tree, list | tuple) else tree


def _parts(tree: Any) -> list[Any]:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init]
    if isinstance(tree, dict):
        return list(tree.values())
    return list(tree) if isinstance(tree, list | tuple) else []
