"""MetricMaker: makes Prometheus's metrics out of plain numbers, all with the same first labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from loratory.server.buckets import Buckets

Labelled = Iterable[tuple[tuple[str, ...], float]]
"""Values, each with those of its labels."""


class MetricMaker:
    """Makes metrics whose first labels are ``common``: their names and values."""

    def __init__(self, **common: str) -> None:
        self._names = tuple(common)
        self._values = tuple(common.values())

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """One value that goes up and down."""
        return self.gauges(name, text, (), [((), value)])

    def gauges(self, name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
        """Several of them, with further labels."""
        family = GaugeMetricFamily(name, text, labels=(*self._names, *labels))
        for key, value in values:
            family.add_metric((*self._values, *key), value)
        return family

    def counter(self, name: str, text: str, value: float) -> Metric:
        """One value that only grows. The text format adds ``_total`` to ``name``."""
        return self.counters(name, text, (), [((), value)])

    def counters(self, name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
        """Several of them, with further labels."""
        family = CounterMetricFamily(name, text, labels=(*self._names, *labels))
        for key, value in values:
            family.add_metric((*self._values, *key), value)
        return family

    def histogram(self, name: str, text: str, buckets: Buckets) -> Metric:
        """One histogram."""
        return self.histograms(name, text, (), [((), buckets)])

    def histograms(
        self, name: str, text: str, labels: Sequence[str], each: Iterable[tuple[tuple[str, ...], Buckets]]
    ) -> Metric:
        """Several of them, with further labels."""
        family = HistogramMetricFamily(name, text, labels=(*self._names, *labels))
        for key, buckets in each:
            upto, total = buckets.read()
            bounds = [*map(floatToGoString, buckets.bounds), "+Inf"]
            family.add_metric((*self._values, *key), list(zip(bounds, upto, strict=True)), total)
        return family
