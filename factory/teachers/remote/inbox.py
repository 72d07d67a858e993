"""The inbox of a loop that asks: what other threads tell it, which are prompts, and that it is to look or to stop."""

import asyncio
from collections import deque
from collections.abc import Iterator

from factory.records import Prompt


class Inbox:
    """Anybody may `put`, `wake` and `stop`; the rest is the loop's own, which begins with `open`."""

    def __init__(self) -> None:
        self.stopping = False
        # the loop clears it before it looks, so that nothing that comes meanwhile is overlooked
        self.changed = asyncio.Event()
        self._incoming: deque[Prompt] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, prompt: Prompt, wake: bool = True) -> None:
        """Have the loop take this when it looks next; now, where it is to wake."""
        self._incoming.append(prompt)
        if wake:
            self.wake()

    def wake(self) -> None:
        """Have the loop look again; one that has not begun takes what is there when it does."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.changed.set)

    def stop(self) -> None:
        self.stopping = True
        self.wake()

    def open(self) -> None:
        """Inside the loop, before anything else."""
        self._loop = asyncio.get_running_loop()

    def take(self) -> Iterator[Prompt]:
        """What has come since; from here on a change counts anew."""
        self.changed.clear()
        while self._incoming:
            yield self._incoming.popleft()

    async def wait(self, seconds: float | None) -> None:
        """Until something has changed, or so long."""
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return
