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
    # a copy: the bits may lie in a read-only file map, and tensors may be written to
    return torch.from_numpy(bits.astype("<u2", copy=True)).view(torch.bfloat16)


def int_tensor(values: Array) -> Any:
    """An int64 tensor of these values."""
    return import_torch().from_numpy(values.astype("<i8", copy=True))


def safetensors_bytes(bits: dict[str, tuple[str, Array]]) -> bytes:
    """A safetensors file: for each tensor its dtype's name and its values (for bfloat16 the bits as uint16)."""
    try:
        from safetensors import serialize
    except ModuleNotFoundError as error:
        raise DatasetError(
            "this format needs safetensors, which is not installed; `pip install safetensors`"
        ) from error
    tensors: Any = {
        name: {"dtype": dtype, "shape": list(values.shape), "data": values.tobytes()}
        for name, (dtype, values) in bits.items()
    }
    made: bytes = serialize(tensors, None)
    return made
