"""Models without memory: their shapes and types alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def outline() -> Iterator[None]:
    """A context in which new tensors have no memory, even if the code asks for some on the CPU.

    `torch.device("meta")` does this only where the code leaves the device open.

    >>> with outline():
    ...     large = torch.empty(10**6, 10**6, device="cpu")
    >>> large.shape, large.device.type
    (torch.Size([1000000, 1000000]), 'meta')
    """
    with torch.device("meta"), _OnMeta():
        yield


class _OnMeta(TorchFunctionMode):
    """Every device that a function of torch is given is "meta"."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
