"""Background tasks with a name and an owner. One that dies is logged, makes us unready, and is started again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

RESTART_DELAY = 1.0


class Supervisor:
    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self.died: dict[str, str] = {}
        """What each task that is down at the moment died of."""

    def __repr__(self) -> str:
        return f"<Supervisor {', '.join(task.get_name() for task in self._tasks)}>"

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(self._supervise(name, run), name=name))

    async def finish(self, name: str, seconds: float) -> None:
        """Wait for a task that was told to end."""
        await asyncio.wait([task for task in self._tasks if task.get_name() == name], timeout=seconds)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await run()
                return
            except Exception as error:
                logger.exception("%s died, starting it again", name)
                self.died[name] = f"{name} died: {type(error).__name__}"
            await asyncio.sleep(RESTART_DELAY)
            self.died.pop(name, None)
