"""Lets vLLM take its second model runner on a machine without a GPU: Triton's own interpreter runs its kernels.

vLLM's CPU build looks whether Triton has a driver for processors, and needs none: TRITON_INTERPRET=1 does without. On
`PYTHONPATH` of the runner's tests (`make integration-v2`), so that every process of theirs has it.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    from triton import backends
    from triton.runtime.interpreter import InterpreterBuilder

    class Driver:
        """No driver: it only says that there is one."""

        @staticmethod
        def is_active() -> bool:
            return True

    backends.backends.setdefault("cpu", backends.Backend(compiler=None, driver=Driver))  # type: ignore[arg-type]

    # a mask that was calculated is not always of the one type that the interpreter's loads and stores take
    def take_any_mask(name: str, place: int) -> None:
        inner = getattr(InterpreterBuilder, name)

        def outer(self, *args):  # type: ignore[no-untyped-def]
            given = list(args)
            given[place].data = given[place].data.astype(np.bool_)
            return inner(self, *given)

        setattr(InterpreterBuilder, name, outer)

    take_any_mask("create_masked_load", 1)
    take_any_mask("create_masked_store", 2)
