"""hand_over: tells a policy that is put into a running engine what is there, as the events that lead to it."""

from __future__ import annotations

from loratory.serving.event_dispatch import Announcer
from loratory.serving.events import Admitted, Arrived, Event, Loaded, LoadStarted
from loratory.serving.ledger import Ledger


def hand_over(ledger: Ledger, announcer: Announcer) -> None:
    """Tell the announcer's policy, and nobody else, of the adapters on the GPU and on their way, of the requests that
    run in order of admission (`Admitted`), and of those that wait in order of arrival (`Arrived`).

    A policy that keeps its own books (a lane for each adapter, say) fills them as it does in any run. Of a request that
    runs it gets no `Arrived`, because what has arrived waits. Service that was given before is not told: for a fair
    policy, the account begins now.
    """
    kinds: tuple[type, ...] = (LoadStarted, Loaded, Arrived, Admitted)
    handlers = {kind: announcer.policy_handler(kind) for kind in kinds}

    def tell(event: Event) -> None:
        handler = handlers[type(event)]
        if handler is not None:
            handler(event)

    now = ledger.now
    made = {state.name: state for state in ledger.adapters.made()}
    for name in ledger.adapters:
        state = made.get(name)
        if state is None:
            continue
        if state.tier in ("gpu", "loading"):
            tell(LoadStarted(now, name, "host", False))
        elif state.prefetching:
            tell(LoadStarted(now, name, "disk", True))
        if state.tier == "gpu":
            tell(Loaded(now, name, False))
    for sequence in list(ledger.running.values()):
        tell(Admitted(now, sequence.view, sequence.hit))
    for sequence in list(ledger.sequences.values()):
        if sequence.state == "waiting":
            tell(Arrived(now, sequence.view))
