"""Lets vLLM take its second model runner on a machine without a GPU: Triton's own interpreter runs its kernels.

vLLM's CPU build looks whether Triton has a driver for processors, and needs none: TRITON_INTERPRET=1 does without. On
`PYTHONPATH` of the runner's tests (`make integration-v2`), so that every process of theirs has it.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton import backends

    class Driver:
        """No driver: it only says that there is one."""

        @staticmethod
        def is_active() -> bool:
            return True

    backends.backends.setdefault("cpu", backends.Backend(compiler=None, driver=Driver))  # type: ignore[arg-type]
