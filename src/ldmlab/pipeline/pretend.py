"""A CUDA device without a GPU: what happens on the host is real, what happens on the device has shapes and no values.

Inside `PretendedCuda()` PyTorch accepts device="cuda" on any machine. Tensors of the CPU are computed with as always; tensors
of the device are fake ones (`FakeTensor`: size, stride, dtype and device), so code for a GPU runs as far as a GPU would take it without
a result. Whatever costs time or is a mistake on a real GPU is written down with the line of the package that did it:

    read     a value of the device is read on the host (.item(), bool(), .cpu(), .tolist()): the host waits for the device. What is
             read is made up: ones, and normal numbers for whole tensors of floats.
    pageable a copy to the device from memory that is not pinned: the host waits until it is done
    copy     a copy to the device from pinned memory, which runs beside everything else
    float64  a double-precision tensor on the device, whose arithmetic is 2 to 64 times as slow as float32's there
    shape    an operation whose result's size depends on values (nonzero, a boolean index): the host waits to learn it

A tensor of the host in an operation of the device raises RuntimeError, as on a GPU. Single numbers (tensors without dimensions) may
mix, as there: they travel with the kernel's arguments.

What it can't see: kernels, their speed and their memory; other threads and processes (loader workers); what libraries do below PyTorch.
"""

import contextlib
import functools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ldmlab.pipeline.replaced import replaced

CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(__file__).parents[1])
aten = torch.ops.aten

BACKWARD = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
PINNING = (aten.is_pinned.default, aten._pin_memory.default)
PINNED = "pretended_to_be_pinned"  # an attribute of tensors


@dataclass(frozen=True)
class Event:
    """One thing that the device was made to wait for, or that is slow there. place: file:line of the package, function."""

    kind: str
    place: str
    what: str

    @property
    def function(self) -> str:
        """The place without its line."""
        file, _, function = self.place.partition(" ")
        return f"{file.partition(':')[0]} {function}"

    def __str__(self) -> str:
        return f"{self.kind} {self.what} at {self.place}"


class PretendedCuda(TorchDispatchMode):
    """See the module. `events`: what was seen, in order; `clear()` forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.events: list[Event] = []
        self.made: set[int] | None = None  # within a call from Python: what its last kernel made (see `_Calls`)
        self._normal = torch.Generator().manual_seed(0)

    def clear(self) -> None:
        self.events.clear()

    def counts(self) -> dict[str, int]:
        """Events of each kind."""
        return dict(Counter(event.kind for event in self.events))

    # ---- the mode

    def __enter__(self) -> "PretendedCuda":
        self._stack = contextlib.ExitStack()
        enter = self._stack.enter_context
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        enter(replaced(torch.cuda.amp.common, amp_definitely_not_available=lambda: False))
        waits = functools.partial(self._see, "read", "torch.cuda.synchronize")
        enter(replaced(torch.cuda, is_bf16_supported=lambda *a, **k: True, synchronize=lambda *a, **k: waits()))
        enter(replaced(torch, Generator=lambda device="cpu", make=torch.Generator: make()))
        enter(replaced(torch.utils, swap_tensors=self._swap))
        enter(replaced(fake_tensor, init_gpu_context=lambda device: None))
        copied = {
            "__reduce_ex__": lambda x, version: x.cpu().__reduce_ex__(version),
            "tolist": lambda x: x.cpu().tolist(),
        }
        enter(replaced(FakeTensor, **copied))
        enter(self.fake)
        self._calls = enter(_Calls(self))
        return super().__enter__()

    def _swap(self, first: Tensor, second: Tensor, swap: Any = torch.utils.swap_tensors) -> None:
        """Module.to on tensors of the device; PyTorch's swap refuses tensors that its own converter remembers weakly."""
        self.fake.fake_tensor_converter.meta_converter.tensor_memo.clear()
        self._calls.nodes.pop(id(first), None)
        swap(first, second)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return torch.device("meta") if self.made is None or id(args[0]) in self.made else args[0].fake_device
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "meta":  # C++ repeats that answer
            wanted = kwargs["device"] = CUDA
        found = self._run(func, args, kwargs)
        made = [x for x in pytree.tree_leaves(found) if isinstance(x, FakeTensor)]
        if any(x.dtype in (torch.float64, torch.complex128) for x in made):
            self._see("float64", str(func))
        if self.made is not None:
            self.made = {id(x) for x in made}
        return found

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = [x for x in given if isinstance(x, FakeTensor)]
        if func in PINNING:
            return self._pin(func, args[0])
        if func is aten._to_copy.default:
            return self._copied(args[0], kwargs)
        wanted = kwargs.get("device")
        if not on_device and (wanted is None or torch.device(wanted).type == "cpu"):
            pin = kwargs.pop("pin_memory", False)
            with unset_fake_temporarily():
                made = func(*args, **kwargs)
            return self._pin(aten._pin_memory.default, made) if pin else made
        if func is aten.copy_.default:
            return self._copied_into(args[0], args[1])
        if func is aten._local_scalar_dense.default:
            self._see("read", "a number")
            return _one(args[0].dtype)
        host = [x for x in given if not isinstance(x, FakeTensor) and x.dim() > 0]
        if host and func in INDEXED:
            self._see("pageable", f"an index of {tuple(host[0].shape)}")
        elif host:
            raise RuntimeError(
                f"{func}: a tensor {tuple(host[0].shape)} of the CPU in an operation on cuda, at {place()}"
            )
        try:
            with self.fake:
                return func(*args, **kwargs)
        except DynamicOutputShapeException:
            self._see("shape", str(func))
            raise

    def _copied(self, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        target = torch.device(kwargs.get("device") or source.device)
        if isinstance(source, FakeTensor) and target.type == "cpu":
            self._see("read", f"a copy of {tuple(source.shape)}")
            with unset_fake_temporarily():
                return self._made_up(source.shape, kwargs.get("dtype") or source.dtype)
        if isinstance(source, FakeTensor):
            with self.fake:
                return aten._to_copy.default(source, **kwargs)
        with unset_fake_temporarily():
            on_host = aten._to_copy.default(source, **{**kwargs, "device": torch.device("cpu")})
        if target.type == "cpu":
            return on_host
        self._sent(source)
        with self.fake:
            return torch.empty_strided(on_host.shape, on_host.stride(), dtype=on_host.dtype, device=target)

    def _copied_into(self, target: Tensor, source: Tensor) -> Tensor:
        if isinstance(target, FakeTensor) and not isinstance(source, FakeTensor):
            if source.dim():
                self._sent(source)
            return target
        if not isinstance(target, FakeTensor):
            self._see("read", f"a copy of {tuple(source.shape)}")
            with unset_fake_temporarily():
                return target.copy_(self._made_up(source.shape, source.dtype))
        with self.fake:
            return aten.copy_.default(target, source)

    def _made_up(self, shape: Any, dtype: torch.dtype) -> Tensor:
        return (
            torch.randn(shape, generator=self._normal).to(dtype)
            if dtype.is_floating_point
            else torch.ones(shape, dtype=dtype)
        )

    def _sent(self, source: Tensor) -> None:
        self._see("copy" if hasattr(source, PINNED) else "pageable", f"a copy of {tuple(source.shape)}")

    def _pin(self, func: Any, tensor: Tensor) -> Any:
        if func is aten.is_pinned.default:
            return hasattr(tensor, PINNED)
        with unset_fake_temporarily():
            copy = tensor.clone()
        setattr(copy, PINNED, True)
        return copy

    def _see(self, kind: str, what: str) -> None:
        self.events.append(Event(kind, place(), what))


class _Calls(TorchFunctionMode):
    """Tells the mode who asks where a tensor is.

    Autograd would look for streams of a device that is not there, and is told "meta", which has none; autocast must hear "cuda".
    Within a call from Python autograd asks for what the last kernel made, and autocast for the rest; outside of calls only autograd
    asks. It would ask for leaves at any time, so their nodes are made here, ahead of the call.
    """

    def __init__(self, device: PretendedCuda):
        super().__init__()
        self.device = device
        self.nodes: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            for x in pytree.tree_leaves((args, kwargs)):
                if isinstance(x, FakeTensor) and x.requires_grad and x.grad_fn is None and id(x) not in self.nodes:
                    self.nodes[id(x)] = x.expand_as(x).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
        before, self.device.made = self.device.made, None if func in BACKWARD else set()
        try:
            return func(*args, **kwargs)
        finally:
            self.device.made = before


def _one(dtype: torch.dtype) -> float | int | bool:
    return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


def place() -> str:
    """The innermost line of the package, as path:line function; else the innermost outside PyTorch and this file."""
    frame: Any = sys._getframe(1)
    outside = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and file != __file__:
            return f"{file[len(PACKAGE) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        if not outside and file != __file__ and "/torch/" not in file:
            outside = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return outside
