"""AdapterStates: the adapters of one engine by name, each with a state once something has asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from loratory.serving.compiling import mypyc_attr
from loratory.serving.lora import Adapter
from loratory.serving.usage import AdapterState
from loratory.serving.views import AdapterView


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class AdapterStates(Mapping[str, AdapterState]):
    """A mapping from names to states, in order of registration; a state is made when it is first read.

    An engine of a fleet may know ten thousand adapters and meet a hundred of them. ``specs`` is the fleet's, and not
    copied until an adapter comes or goes here; ``make`` makes the state of one.
    """

    __slots__ = ("_made", "_make", "_own", "_specs")

    def __init__(self, specs: dict[str, Adapter], make: Callable[[Adapter], AdapterState]) -> None:
        self._specs = specs
        self._own = False
        """Whether ``specs`` belongs to this engine alone."""
        self._make = make
        self._made: dict[str, AdapterState] = {}

    def __getitem__(self, name: str) -> AdapterState:
        state = self._made.get(name)
        if state is None:
            state = self._made[name] = self._make(self._specs[name])
        return state

    def find(self, name: str) -> AdapterState | None:
        """The state of an adapter; None for an unknown one."""
        state = self._made.get(name)
        if state is None and name in self._specs:
            state = self[name]
        return state

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def made(self) -> Iterator[AdapterState]:
        """The states that there are: of every adapter that requests, loads or the policy have named, and of those that
        began in host memory or pinned."""
        return iter(self._made.values())

    def later(self) -> list[Adapter]:
        """The adapters of this engine that came after its start, or may have."""
        return list(self._specs.values()) if self._own else []

    def add(self, state: AdapterState) -> None:
        """One more adapter, the last in order."""
        assert state.spec is not None
        name = state.spec.name
        self._change()[name] = state.spec
        self._made[name] = state

    def remove(self, name: str) -> None:
        """An adapter is gone."""
        del self._change()[name]
        self._made.pop(name, None)

    def _change(self) -> dict[str, Adapter]:
        if not self._own:
            self._specs, self._own = dict(self._specs), True
        return self._specs


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class AdapterViews(Mapping[str, AdapterView]):
    """The views of the same, for policies."""

    __slots__ = ("_states",)

    def __init__(self, states: AdapterStates) -> None:
        self._states = states

    def __getitem__(self, name: str) -> AdapterView:
        return self._states[name].view

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __repr__(self) -> str:
        return repr(dict(self))
