"""What a denoiser's forward pass keeps for its backward pass, counted on tensors without contents.

Shape letters: B batch, C channels, H W space.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ldmlab.conditioning.base import Cond
from ldmlab.diffusion.denoiser import Denoiser


def activations_of(model: Denoiser, latent_shape: tuple[int, int, int], images: int, precision: str) -> int:
    """Bytes that one forward pass of so many images keeps, parameters not included; `model` is on the meta device.

    With bf16 its copies of the weights count too. Reading conditions counts as reading the null condition once an image.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with kept_tensors(model.parameters()) as of_condition:
        condition = model.null(1, latent_shape[1:], "meta")
    network = model.network
    with (
        FakeTensorMode()
    ):  # on a CPU: attention on the meta device would keep the weights of all pairs, which no kernel does
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        }
        parts = vars(condition).items()
        cond = Cond(**{name: None if part is None else _batch_of(part, images) for name, part in parts})
        z_BCHW, t_B = torch.empty(images, *latent_shape), torch.zeros(images, dtype=torch.long)
        with kept_tensors(state.values()) as of_network, torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            torch.func.functional_call(network, state, (z_BCHW, t_B, cond))
    return sum(of_network.values()) + images * sum(of_condition.values())


def _batch_of(part: Tensor, images: int) -> Tensor:
    return torch.empty(images, *part.shape[1:], dtype=part.dtype, requires_grad=part.requires_grad)


@contextlib.contextmanager
def kept_tensors(weights: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Fills {storage: bytes} with what autograd keeps within, but for the storages of `weights`."""
    found: dict[int, int] = {}
    held: list[Tensor] = list(weights)  # as long as a storage is held, no other has its number
    known = {tensor.untyped_storage()._cdata for tensor in held}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
