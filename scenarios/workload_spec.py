"""WorkloadSpec: the stream of requests, drawn from distributions or read from a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from loratory.scenarios.arrivals import ArrivalsSpec
from loratory.scenarios.lengths import Lengths, Seconds
from loratory.scenarios.popularity import PopularitySpec
from loratory.scenarios.schema_types import Count, FileRef, Index, Name, NotNegative, Positive, Section, Share, wrong
from loratory.scenarios.traces.columns import ColumnsSpec

TraceFormat = Literal[
    "azure", "bailian", "mooncake", "burstgpt", "vidur", "servegen", "gentd", "azure_functions", "generic"
]
TimeUnit = Literal["s", "ms", "us", "ns"]


def _word_or(other: str, *kind: type) -> Discriminator:
    return Discriminator(lambda value: other if isinstance(value, kind) and not isinstance(value, bool) else "word")


MaxTokens = Annotated[
    Annotated[Count, Tag("number")] | Annotated[Literal["cap", "exact", "trace"], Tag("word")], _word_or("number", int)
]


class Noise(Section):
    """Predictions that are off by a lognormal factor of mean 1."""

    noise: Positive = Field(description="coefficient of variation of prediction / truth")


Predicted = Annotated[
    Annotated[Noise, Tag("mapping")] | Annotated[Literal["none", "exact", "adapter_mean"], Tag("word")],
    _word_or("mapping", dict, Noise),
]


class Slice(Section):
    """Consecutive adapters, by position."""

    start: Index = Field(0, description="position of the first, from 0")
    count: Count = Field(description="how many")


Subset = Annotated[
    Annotated[Slice, Tag("mapping")] | Annotated[list[Name], Field(min_length=1), Tag("list")],
    Discriminator(
        lambda value: "list" if isinstance(value, list | tuple) else "mapping",
        custom_error_type="subset",
        custom_error_message="should be a list of adapter names or {start, count}",
    ),
]


class Stream(Section):
    """One part of a workload with arrivals of its own, such as a tenant's; an omitted key is inherited."""

    tenant: Name | None = Field(None, description="the tenant of its requests; by default as in tenants.map")
    arrivals: ArrivalsSpec = Field(description="its arrivals; a stream cannot be closed_loop")
    input_tokens: Lengths | None = Field(None, description="prompt lengths; by default the workload's")
    output_tokens: Lengths | None = Field(None, description="output lengths; by default the workload's")
    adapters: Subset | None = Field(None, description="adapters it uses: names or {start, count}; by default all")
    popularity: PopularitySpec | None = Field(None, description="over those adapters; by default adapters.popularity")
    base_share: Share | None = Field(None, description="share of base-model requests; by default adapters.base_share")
    start_s: NotNegative = Field(0.0, description="when it begins, s")
    end_s: Positive | None = Field(None, description="when it ends, s; by default with the workload")
    priority: int | None = Field(None, description="priority of its requests, lower first; by default the tenant's")
    deadline_s: Seconds | None = Field(None, description="deadline after arrival, s; by default the workload's")

    @model_validator(mode="after")
    def _consistent(self) -> Stream:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise wrong(f"is {self.end_s:g}, but start_s is {self.start_s:g}: it should end after it begins", "end_s")
        if self.arrivals.closed_loop is not None:
            raise wrong("cannot be closed_loop in a stream: use open arrivals", "arrivals")
        return self


class WorkloadSpec(Section):
    """The stream of requests: arrivals and lengths, or a trace, or several streams."""

    arrivals: ArrivalsSpec | None = Field(
        None,
        description="poisson, gamma, constant, on_off, diurnal or closed_loop; with a trace, replaces its "
        "times, or, where later turns have delays, the times at which sessions begin",
    )
    input_tokens: Lengths | None = Field(None, description="prompt lengths; with a trace, they replace its own")
    output_tokens: Lengths | None = Field(None, description="output lengths; with a trace, they replace its own")
    duration_s: Positive | None = Field(None, description="requests arrive in [0, duration_s), s")
    requests: Count | None = Field(
        None, description="number of requests, instead of duration_s; with a trace, its first rows"
    )
    streams: Annotated[list[Stream], Field(min_length=1)] | None = Field(
        None, description="sub-workloads, merged by time, each with its own tenant, arrivals, lengths and adapters"
    )
    generator: Literal["loratory", "slora", "vtc"] = Field(
        "loratory",
        description="slora, vtc: draw exactly as that system's benchmark does; the run's seed is its numpy seed (42)",
    )
    max_tokens: MaxTokens = Field(
        "cap",
        description="max_tokens that policies see: cap (the longest output, default), a number, exact (ignore_eos), or "
        "trace (the trace's own column)",
    )
    predicted_tokens: Predicted = Field(
        "none",
        description="predicted output length that policies see: none (default), exact, adapter_mean or {noise: cv}",
    )
    deadline_s: Seconds | None = Field(None, description="deadline after arrival, s: a number or a distribution")
    max_outstanding: Count | None = Field(
        None,
        description="most requests that clients have open at once, such as 28232, the ports of one Linux client; "
        "one more arrives when another ends",
    )
    cutoff_s: Positive | None = Field(
        None, description="when the run ends at the latest, s; unfinished requests are aborted"
    )
    trace: FileRef | None = Field(None, description="a log to replay: a file, or a ServeGen folder or .tgz")
    format: TraceFormat | None = Field(None, description="the trace's format; by default detected")
    columns: ColumnsSpec = Field(default_factory=ColumnsSpec, description="which column of the trace holds what")
    time_unit: TimeUnit | None = Field(
        None, description="unit of the trace's times and delays: s, ms, us or ns; by default its format's, or detected"
    )
    rate_scale: Positive = Field(1.0, description="the trace's rate is multiplied by this (its times are divided)")
    window: tuple[NotNegative, Positive] | None = Field(
        None, description="[t0, t1): replay this part of the trace, s from its start, before rate_scale"
    )
    adapter_from: Literal["auto", "column", "client", "tenant", "popularity"] = Field(
        "auto", description="what determines a request's adapter; auto: the trace's adapter column, else popularity"
    )
    zero_tokens: Literal["drop", "clamp"] = Field(
        "drop", description="rows without prompt or output tokens: drop them, or count 0 as 1"
    )
    prefix_cache: bool = Field(
        False,
        description="count blocks (hash_ids) of earlier requests of the same adapter as cached, without limit",
    )
    block_tokens: Count | None = Field(
        None,
        description="number of tokens in a block of hash_ids; by default its format's, or detected from the prompts",
    )

    @model_validator(mode="after")
    def _consistent(self) -> WorkloadSpec:
        closed = self.arrivals is not None and self.arrivals.closed_loop is not None
        if self.max_outstanding is not None and (closed or self.trace is not None or self.generator != "loratory"):
            raise wrong(
                "needs open arrivals that are drawn: remove it, or the trace, generator or closed_loop",
                "max_outstanding",
            )
        if self.trace is not None:
            self._check_trace()
            return self
        if self.max_tokens == "trace":
            raise wrong("is trace, but workload.trace is missing: use cap, exact or a number", "max_tokens")
        if self.generator == "vtc" and not self._drawn_by_vtc():
            raise wrong(
                "is vtc, which needs streams with fixed lengths, all poisson or all constant or on_off (with "
                "rate_off: 0 and gaps: equal), and no other key in them but tenant",
                "generator",
            )
        if self.streams is not None:
            self._check_streams()
            return self
        if (self.duration_s is None) == (self.requests is None):
            raise wrong("needs either duration_s or requests, which set its end")
        for key in ("input_tokens", "output_tokens"):
            if getattr(self, key) is None:
                raise wrong("is missing: add it, for example {lognormal: {mean: 512, cv: 1.0}}", key)
        if self.arrivals is not None and self.arrivals.closed_loop is not None and self.requests is None:
            raise wrong("is closed_loop, which needs a number of requests: replace duration_s by requests", "arrivals")
        return self

    def _check_trace(self) -> None:
        for key in ("streams", "duration_s"):
            if getattr(self, key) is not None and not (key == "duration_s" and self.arrivals is not None):
                remedy = "use window" if key == "duration_s" else "remove one of them"
                raise wrong(f"cannot be combined with trace: {remedy}", key)
        if self.arrivals is not None and self.arrivals.closed_loop is not None and self.duration_s is not None:
            raise wrong(
                "cannot be combined with closed_loop, which needs a number of requests: use requests", "duration_s"
            )
        if self.window is not None and self.window[1] <= self.window[0]:
            raise wrong(
                f"ends at {self.window[1]:g} s, but begins at {self.window[0]:g} s: give [start, end]", "window"
            )
        if self.generator != "loratory":
            raise wrong("cannot be combined with trace: remove one of them", "generator")

    def _check_streams(self) -> None:
        if self.arrivals is not None:
            raise wrong("cannot be combined with streams, which have their own: remove one of them", "arrivals")
        if self.requests is not None or self.duration_s is None:
            raise wrong("needs workload.duration_s, not requests, which sets when the streams end", "streams")
        if self.generator == "slora":
            raise wrong("cannot be combined with streams: remove one of them", "generator")
        for index, stream in enumerate(self.streams or ()):
            for key in ("input_tokens", "output_tokens"):
                if getattr(self, key) is None and getattr(stream, key) is None:
                    raise wrong("is missing: add it here, or in workload for every stream", "streams", index, key)
            if stream.start_s >= self.duration_s:
                raise wrong(
                    f"is {stream.start_s:g}, but the workload ends at {self.duration_s:g} s: lower it",
                    *("streams", index, "start_s"),
                )

    def _drawn_by_vtc(self) -> bool:
        known = {"tenant", "arrivals", "input_tokens", "output_tokens"}
        streams = self.streams or []
        arrivals = [stream.arrivals for stream in streams]
        even = [a.constant or (a.on_off and a.on_off.gaps == "equal" and not a.on_off.rate_off) for a in arrivals]
        lengths = [(s.input_tokens or self.input_tokens, s.output_tokens or self.output_tokens) for s in streams]
        return (
            bool(streams)
            and (all(even) or all(a.poisson for a in arrivals))
            and all(given is not None and given.fixed for pair in lengths for given in pair)
            and all(
                getattr(s, k) == f.default for s in streams for k, f in Stream.model_fields.items() if k not in known
            )
        )


def stream_positions(stream: Stream, names: tuple[str, ...]) -> Sequence[int]:
    """The positions in ``names`` of the adapters a stream uses. `LookupError` names the missing one."""
    if stream.adapters is None:
        return range(len(names))
    if isinstance(stream.adapters, Slice):
        end = stream.adapters.start + stream.adapters.count
        if end > len(names):
            raise LookupError(f"adapters {stream.adapters.start} to {end - 1}")
        return range(stream.adapters.start, end)
    position = {name: index for index, name in enumerate(names)}
    missing = next((name for name in stream.adapters if name not in position), None)
    if missing is not None:
        raise LookupError(repr(missing))
    return [position[name] for name in stream.adapters]
