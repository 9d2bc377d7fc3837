"""Live: what makes a server's policy, shadow and recording change and last; `build_server` needs this one object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError
from loratory.server.admin import AdminState
from loratory.server.engine_loop import EngineLoop
from loratory.server.live_recording import LiveRecording
from loratory.server.live_tape import LiveTape
from loratory.server.policy_files import canonical_spec
from loratory.server.recorded_scenario import ServedSetup
from loratory.server.settings import ServerSettings
from loratory.serving.events import Sink, combined
from loratory.serving.lora import Adapter
from loratory.serving.run_recording import Tape
from loratory.sim.cost.profile import ProfileCost

LOG = logging.getLogger("loratory.server")


class Live:
    """Made before the executor, which gets `sink` and `record`; then `attach`, `start` in the event loop, `close`.

        live = Live(settings, served, cost, adapters, machine.files.get, started_unix)
        executor = machine.executor(..., sink=combined(live.sink, ...), record=live.record)
        live.attach(EngineLoop(executor))

    ``adapters``: those that the engine begins with; ``files_of``: the files that an adapter is served from. Raises
    `InputError` for a folder that cannot be recorded into, and a shadow without a recording.
    """

    def __init__(
        self,
        settings: ServerSettings,
        served: ServedSetup,
        cost: ProfileCost,
        adapters: Sequence[Adapter],
        files_of: Callable[[str], VerifiedAdapter | None],
        started_unix: float,
    ) -> None:
        if settings.shadow is not None and settings.record is None:
            raise InputError("--shadow writes beside the recording: add --record DIR")
        self._settings = settings
        self._on = bool(settings.admin_token) or settings.record is not None
        self._closed = False
        self.tape = LiveTape()
        self.recording: LiveRecording | None = None
        if settings.record is not None:
            self.recording = LiveRecording(settings.record, served, cost, adapters, files_of, started_unix)
            self.tape.add(self.recording.take)
        folder = None if self.recording is None else self.recording.status.folder
        self.admin = AdminState(settings, cost, self.tape, folder)

    @property
    def sink(self) -> Sink | None:
        """The events that it needs."""
        return combined(self.admin.sink, self.tape.sink) if self._on else None

    @property
    def record(self) -> bool | Tape:
        """What the executor's ``record`` is to be."""
        return self.tape if self._on else False

    def attach(self, loop: EngineLoop) -> None:
        """The loop over the executor, before it starts."""
        self.admin.attach(loop)
        if self._on:
            loop.executor.engine.before_consult = self.tape.consulted

    async def start(self) -> None:
        """Begin what the settings ask for. Raises `InputError` or `PolicyError` for a shadow that cannot be made."""
        if self._settings.shadow is not None:
            await self.admin.put_beside(canonical_spec(self._settings.shadow))

    def close(self) -> None:
        """End shadow and recording, once the engine's thread has ended. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self.tape.close()
        self.admin.close()
        if self.recording is not None:
            status = self.recording.close()
            LOG.info("%s: %d steps, %d bytes", status.folder, status.steps, status.bytes)
