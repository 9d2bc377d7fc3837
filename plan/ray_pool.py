"""ray_pool: a plan's runs as tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from loratory.errors import InputError, LoratoryError, shortened
from loratory.plan.evaluate import Evaluation, evaluate
from loratory.plan.measure import Measured
from loratory.serving.guest_errors import unexpected

RETRIES = 5
"""How often Ray does a run again whose worker or machine is lost."""

CONNECT_S = 5.0
"""Seconds to wait for a cluster to answer."""

LOCAL, AUTO = "local", "auto"
"""Addresses with a meaning of their own: a cluster that this process starts; the one that runs here, or else that."""


class RayPool:
    """Runs as Ray tasks, a CPU each, at most a few for each CPU at once."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._answer = ray.remote(num_cpus=1, max_retries=RETRIES)(_answer)

    def results(self, asked: Sequence[Evaluation]) -> Iterator[tuple[int, Measured]]:
        """See `loratory.plan.pools.Pool`. Raises what a run raised; `LoratoryError` when a worker is lost too often."""
        ray = self._ray
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        queue = list(enumerate(asked))[::-1]
        places: dict[Any, int] = {}
        while queue or places:
            while queue and len(places) < most:
                place, each = queue.pop()
                places[self._answer.remote(each)] = place
            done, _ = ray.wait(list(places), num_returns=1)
            for reference in done:
                place = places.pop(reference)
                try:
                    ok, found = ray.get(reference)
                except ray.exceptions.RayError as error:
                    why = shortened(str(error).strip().splitlines()[0], 200)
                    raise LoratoryError(
                        f"{asked[place].name}: Ray gave the run up after {RETRIES + 1} tries: {why}"
                    ) from error
                if not ok:
                    raise found
                yield place, found


def _answer(asked: Evaluation) -> tuple[bool, Measured | LoratoryError]:
    """A run in a worker; its error as a value, because Ray would wrap it."""
    try:
        return True, evaluate(asked)
    except LoratoryError as error:
        return False, error
    except Exception as error:
        return False, LoratoryError(unexpected(error))


@contextmanager
def ray_pool(address: str) -> Iterator[RayPool]:
    """Tasks on the cluster at ``address``; ``auto``: the one that runs on this machine, or else one made for this plan.

    Raises `InputError` where Ray is not installed or there is no cluster at the address.
    """
    try:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
    except ImportError:
        raise InputError("--ray needs the ray package: install it with pip install 'loratory[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address, options)
    try:
        yield RayPool(ray)
    finally:
        if begun:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Whether something listens at ``HOST:PORT`` or ``ray://HOST:PORT``; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--ray is {address!r}, which is no address: give auto, or HOST:PORT of a cluster's head node")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        text = f"--ray {address}: no Ray cluster answers there ({error.strerror or error}): correct it, or use auto"
        raise InputError(text) from error


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    if address != AUTO:
        _check_answers(address)
        try:
            ray.init(address=address, **options)
        except Exception as error:
            why = shortened(" ".join(str(error).split()), 160)
            raise InputError(
                f"--ray {address}: no Ray cluster answers there ({why}): correct it, or use auto"
            ) from error
        return
    try:
        ray.init(address=AUTO, **options)
    except ConnectionError:
        ray.init(address=LOCAL, include_dashboard=False, **options)
