"""Exposition: a server's counts as the text that Prometheus and routers scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from loratory.server.label_text import label_text
from loratory.server.loratory_metrics import adapter_metrics, engine_metrics, tenant_metrics
from loratory.server.metric_counts import Counts
from loratory.server.metric_maker import MetricMaker
from loratory.server.vllm_metrics import ENGINE, vllm_metrics

_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_EOF = b"# EOF\n"
_KEEP_S = 1.0


class _Part:
    """Metrics that are rendered together: a collector, which makes Prometheus's objects when it is scraped."""

    def __init__(self, metrics: Callable[[], Iterable[Metric]], process: bool = False) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if process:
            ProcessCollector(registry=self._registry)

    def describe(self) -> list[Metric]:
        """No name has to be known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric of now."""
        yield from self._metrics()

    def text(self, open_metrics: bool) -> bytes:
        """As one of the two formats, OpenMetrics without its last line."""
        if not open_metrics:
            return generate_latest(self._registry)
        # Any other escaping turns the colon of vLLM's names into an underscore (prometheus/client_python#1177).
        text: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
            self._registry, escaping=openmetrics.ALLOWUTF8
        )
        return text.removesuffix(_EOF)


class Exposition:
    """Renders `Counts` in the thread that scrapes.

    Routers scrape 20 times a second for vLLM's few metrics, and those of each adapter and tenant are ten times as many:
    these are rendered once a second.
    """

    def __init__(
        self,
        counts: Counts,
        public_name: Callable[[str], str],
        unix_s: Callable[[], float],
        monotonic_s: Callable[[], float],
    ) -> None:
        make = MetricMaker(model_name=label_text(counts.model_name), engine=ENGINE)
        self._monotonic_s = monotonic_s
        self._began = monotonic_s()
        self._vllm = _Part(lambda: vllm_metrics(counts, make, public_name, unix_s()))
        self._engine = _Part(lambda: engine_metrics(counts, make, self.uptime_s))
        self._each = _Part(lambda: (*adapter_metrics(counts, make), *tenant_metrics(counts, make)), process=True)
        self._kept: dict[bool, tuple[float, bytes]] = {}
        """By format, the text of what each adapter and tenant has, and when it was made."""

    @property
    def uptime_s(self) -> float:
        """Seconds since it was made."""
        return self._monotonic_s() - self._began

    def text(self, accept: str) -> tuple[bytes, str]:
        """The text that an ``Accept`` header asks for, and its content type."""
        _, content_type = choose_encoder(accept)
        open_metrics = content_type.startswith("application/openmetrics-text")
        now = self._monotonic_s()
        made_at, each = self._kept.get(open_metrics, (now - _KEEP_S, b""))
        if now - made_at >= _KEEP_S:
            each = self._each.text(open_metrics)
            self._kept[open_metrics] = (now, each)
        text = self._vllm.text(open_metrics) + self._engine.text(open_metrics) + each
        return (text + _EOF, _OPENMETRICS) if open_metrics else (text, CONTENT_TYPE_PLAIN_0_0_4)
