"""Models without values: their tensors have a shape and a type, and take no memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def outline() -> Iterator[None]:
    """A context in which new tensors are on the device "meta", where they take no memory.

    `torch.device("meta")` alone does this only where code names no device. Here, code that asks for
    the CPU gets "meta", too.

    >>> with outline():
    ...     large = torch.empty(10**6, 10**6, device="cpu")
    >>> large.shape, large.device.type
    (torch.Size([1000000, 1000000]), 'meta')
    """
    with torch.device("meta"), _OnMeta():
        yield


class _OnMeta(TorchFunctionMode):
    """Replaces the argument `device` of every function of torch by "meta"."""

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
