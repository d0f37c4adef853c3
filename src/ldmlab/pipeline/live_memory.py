"""Peak memory of a piece of work: by the allocator on a GPU, by counting live tensors elsewhere.

Counting sees every tensor that an operator returns, and when its storage is freed: what PyTorch's CUDA allocator would call
"allocated", without rounding to blocks. It does not see the scratch memory inside one kernel. It needs no real numbers, so
under `no_numbers()` a network far too large for this machine is counted in seconds.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts bytes of live storages while it is entered. `peak` and `live` include the tensors given at the start."""

    def __init__(self, held: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self.live -= size

        # PyTorch keeps one Python object per storage for as long as the storage lives, so its weak reference tells the end
        self._alive[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


@contextlib.contextmanager
def no_numbers(*modules: nn.Module) -> Iterator[None]:
    """Within, tensors have shapes and no contents: nothing is computed and no memory is taken.

    The modules' parameters and buffers lose their contents for good; make tensors and optimisers inside.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    for module in (m for given in modules for m in given.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)  # type: ignore[assignment]
    with mode:
        yield


def tensors_of(*owners: nn.Module | torch.optim.Optimizer | Tensor) -> Iterator[Tensor]:
    """Parameters with their gradients, buffers, optimiser states, and tensors themselves."""
    for owner in owners:
        if isinstance(owner, Tensor):
            yield owner
        elif isinstance(owner, nn.Module):
            yield from owner.buffers()
            for parameter in owner.parameters():
                yield parameter
                if parameter.grad is not None:
                    yield parameter.grad
        else:
            yield from (
                value for state in owner.state.values() for value in state.values() if isinstance(value, Tensor)
            )


def peak_bytes(work: Callable[[], Any], held: Iterable[Tensor], device: torch.device) -> int:
    """Peak memory while `work` runs, what is `held` (weights, optimiser states, inputs) included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with LiveBytes(held) as count:
        work()
    return count.peak
