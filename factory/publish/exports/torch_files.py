"""Files of torch's own kind, as bytes; torch is imported only where one is made."""

import io
from typing import Any

from factory.dataset.rows import import_torch
from factory.errors import DatasetError
from factory.signals import Array


def torch_bytes(value: Any) -> bytes:
    """What `torch.save` makes of a value; the same bytes for the same value."""
    buffer = io.BytesIO()
    import_torch().save(value, buffer)
    return buffer.getvalue()


def bfloat16_tensor(bits: Array) -> Any:
    """A bfloat16 tensor of its bits, uint16 of any shape."""
    torch = import_torch()
    # a copy in C order: layers may have been picked in another, and bits in a read-only file map must not be written
    return torch.from_numpy(bits.astype("<u2", order="C", copy=True)).view(torch.bfloat16)


def int_tensor(values: Array) -> Any:
    """An int64 tensor of these values."""
    return import_torch().from_numpy(values.astype("<i8", copy=True))


def safetensors_bytes(tensors: dict[str, Any]) -> bytes:
    """A safetensors file of these tensors."""
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise DatasetError("this needs safetensors, which is not installed; `pip install safetensors`") from error
    made: bytes = save(tensors)
    return made
