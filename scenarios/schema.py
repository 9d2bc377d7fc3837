"""Scenario: the description of one experiment, and the checks that need more than one of its sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from loratory.errors import did_you_mean, several
from loratory.scenarios.adapters_spec import AdaptersSpec
from loratory.scenarios.cluster_spec import ClusterSpec
from loratory.scenarios.cost_spec import OF_A_MODEL, CostSpec, RooflineCostSpec, TiersSpec
from loratory.scenarios.executor_spec import ExecutorSpec
from loratory.scenarios.memory_spec import MemorySpec
from loratory.scenarios.plan_spec import PlanSpec
from loratory.scenarios.popularity import PopularitySpec
from loratory.scenarios.roll_out_spec import roll_out_problem
from loratory.scenarios.schema_types import GuestSpec, Name, NameOrFile, NotNegative, Section, is_number, no_bool, wrong
from loratory.scenarios.slo import SloSpec
from loratory.scenarios.slo_targets import BASE, adapter_problem, tenant_problem
from loratory.scenarios.tenants import TenantsSpec
from loratory.scenarios.unread_keys import refuse_unread
from loratory.scenarios.workload_spec import WorkloadSpec, stream_positions
from loratory.serving.adapter_limits import host_problem, pinned_problem, rank_problem
from loratory.serving.config import EngineConfig

Seed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(no_bool)]


def _seconds_or_auto(value: Any) -> Any:
    if isinstance(value, str) and value != "auto" and not is_number(value):
        raise wrong(f"should be a number of seconds or auto, not {value!r}")
    return value


WarmUpSeconds = Annotated[NotNegative | Literal["auto"], BeforeValidator(_seconds_or_auto)]


class Scenario(Section):
    """One experiment: a model on GPUs, adapters, a workload, and the policies to compare on it."""

    name: Name = Field(description="short name, used in reports")
    description: str = Field("", description="one sentence: what the scenario shows")
    model: NameOrFile = Field(description="catalogue name, or path of a Hugging Face config.json or of its folder")
    gpu: Name = Field(description="catalogue name, such as h100-80gb")
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig(), description="engine settings, vLLM's names")
    cost: CostSpec = Field(
        default_factory=lambda: RooflineCostSpec(), description="cost model: roofline, kernels, linear or profile"
    )
    memory: MemorySpec = Field(
        default_factory=MemorySpec, description="what the memory model assumes beyond the engine"
    )
    tiers: TiersSpec = Field(
        default_factory=TiersSpec, description="bandwidth and latency of host, disk and remote storage"
    )
    adapters: AdaptersSpec = Field(default_factory=lambda: AdaptersSpec(count=0), description="the LoRA adapters")
    tenants: TenantsSpec = Field(default_factory=TenantsSpec, description="tenants, weights, priorities")
    workload: WorkloadSpec = Field(description="the stream of requests")
    policies: Annotated[list[GuestSpec], Field(min_length=1)] = Field(
        ["fifo"], description="scheduling policies to compare, such as fifo or fair_share:by=tenant"
    )
    cluster: ClusterSpec = Field(default_factory=ClusterSpec, description="replicas and router")
    executor: ExecutorSpec = Field(default_factory=ExecutorSpec, description="settings for --on executor")
    slo: SloSpec = Field(default_factory=SloSpec, description="service levels, such as ttft_p99_s: 2.0")
    plan: PlanSpec = Field(default_factory=PlanSpec, description="settings for `loratory plan`")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field([0], description="one run for each seed and policy")
    warmup_s: WarmUpSeconds = Field(
        0.0,
        description="requests that arrive before this are left out of the metrics, s; auto: until the run has settled",
    )

    @property
    def hardware(self) -> list[tuple[str, int, int]]:
        """By kind of replica: its GPU, how many there are, and GPUs of each."""
        return [
            (group.gpu or self.gpu, group.count, group.engine_of(self.engine, place).tensor_parallel_size)
            for place, group in enumerate(self.cluster.groups)
        ]

    @field_validator("engine", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Refuses true and false where `EngineConfig` wants a number."""
        for key in value if isinstance(value, dict) else ():
            known = EngineConfig.model_fields.get(str(key))
            if isinstance(value[key], bool) and known is not None and known.annotation not in (bool, bool | None):
                raise wrong(f"should be a number, not {str(value[key]).lower()}", key)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        self._check_adapters(self.engine)
        self._check_kinds()
        self._check_memory()
        self._check_arrivals()
        self._check_names()
        self._check_cluster()
        refuse_unread(self)
        for key, values in (("seeds", self.seeds), ("policies", self.policies)):
            if len(set(values)) != len(values):
                raise wrong("repeats an entry: keep each one once", key)
        warmup_s, duration_s = self.warmup_s, self.workload.duration_s
        if duration_s is not None and warmup_s != "auto" and warmup_s >= duration_s:
            raise wrong(f"is {warmup_s:g}, but the workload lasts {duration_s:g} s: lower it", "warmup_s")
        return self

    def _check_kinds(self) -> None:
        """Each kind of replica as the scenario itself."""
        groups = self.cluster.groups
        engines = [group.engine_of(self.engine, place) for place, group in enumerate(groups)]
        for engine in engines:
            if engine is not self.engine:
                self._check_adapters(engine)
        hardware = {
            (group.gpu or self.gpu, engine.tensor_parallel_size) for group, engine in zip(groups, engines, strict=True)
        }
        if hardware != {(self.gpu, self.engine.tensor_parallel_size)} and not isinstance(self.cost, OF_A_MODEL):
            raise wrong(
                f"are of other GPUs than the {self.cost.kind} cost describes: use a roofline or kernels cost",
                *("cluster", "replicas"),
            )

        if self.plan.mixed and not isinstance(self.cost, OF_A_MODEL):
            raise wrong(
                f"needs a cost model of each GPU type, but cost is {self.cost.kind}: use roofline or kernels",
                *("plan", "mixed"),
            )

    def _check_adapters(self, engine: EngineConfig) -> None:
        adapters = self.adapters
        count = adapters.known_count
        if count == 0:
            unused = adapters.popularity is not None and self.workload.generator != "slora"
            if unused or adapters.rates is not None:
                raise wrong("is 0, but popularity or rates need adapters: raise it", "adapters", "count")
            return
        if adapters.records is not None:
            highest = max(adapters.records, key=lambda record: record.rank)
            key = "registry" if "registry" in adapters.model_fields_set else "records"
            subject = f"has an adapter, {highest.name!r}, of rank"
            if problem := rank_problem(subject, highest.rank, engine.max_lora_rank):
                raise wrong(problem, "adapters", key)
        if problem := rank_problem("has", adapters.max_rank(), engine.max_lora_rank):
            raise wrong(problem, "adapters", "ranks")
        pinned = adapters.pinned if isinstance(adapters.pinned, int) else len(adapters.pinned)
        if count is not None and pinned > count:
            raise wrong(f"is {pinned}, but there are {count} adapters: lower it", "adapters", "pinned")
        if problem := pinned_problem("names", pinned, count, engine.max_loras):
            raise wrong(problem, "adapters", "pinned")
        if adapters.initial_tier == "host" and (problem := host_problem(count or 0, engine.host_slots)):
            raise wrong(problem, "adapters", "initial_tier")

    def _check_memory(self) -> None:
        if isinstance(self.cost, OF_A_MODEL) and self.memory.dtype is not None:
            raise wrong(
                "is for linear and profile costs: set cost.dtype instead, for time and memory", "memory", "dtype"
            )
        slots = self.memory.slot_keys()
        if slots and self.engine.memory == "unified":
            raise wrong(
                "is about adapter slots, but engine.memory is unified, which has none: remove it", "memory", slots[0]
            )

    def _check_roll_outs(self) -> None:
        """What can be said of roll-outs before a trace has named its adapters."""
        workload, engines = self.workload, [g.engine_of(self.engine, i) for i, g in enumerate(self.cluster.groups)]
        known = [second for second in (workload.duration_s, workload.cutoff_s) if second is not None]
        for place, (at_s, spec) in self.cluster.roll_outs.items():
            path = ("cluster", "events", place, "roll_out")
            if known and at_s >= min(known):
                raise wrong(
                    f"is {at_s:g}, but the last request arrives before {min(known):g} s: let it begin earlier",
                    *path[:-1],
                    "at_s",
                )
            for engine in engines:
                if engine.memory == "unified":
                    text = "needs engine.memory: slots, because unified memory takes all adapters at the start"
                    raise wrong(text, *path)
                if spec.rank is not None and (problem := rank_problem("is", spec.rank, engine.max_lora_rank)):
                    raise wrong(problem, *path, "rank")
        names = self.adapters.known_names()
        if names is not None and workload.trace is None:
            problem_at = roll_out_problem(self.cluster.roll_outs, names)
            if problem_at is not None:
                raise wrong(problem_at[1], "cluster", "events", problem_at[0], "roll_out")

    def _check_cluster(self) -> None:
        self._check_roll_outs()
        scale, slots, placement = self.cluster.autoscale, self.engine.max_loras, self.cluster.placement
        why = self._without_adapters()
        if placement is not None and placement.name != "replicate_all" and why:
            raise wrong(f"has no effect, because {why}", "cluster", "placement")
        if scale is None:
            return
        if scale.warm_adapters > slots:
            text = f"is {scale.warm_adapters}, but engine.max_loras is {slots}: lower it, or raise that"
            raise wrong(text, "cluster", "autoscale", "warm_adapters")
        if scale.warm_adapters and why:
            raise wrong(f"has no effect, because {why}", "cluster", "autoscale", "warm_adapters")
        if scale.by == "attainment" and self.slo.ttft_limit is None:
            text = "is attainment, which needs a limit on TTFT: add one, such as slo.ttft_p99_s"
            raise wrong(text, "cluster", "autoscale", "by")

    def _without_adapters(self) -> str:
        """Why no request of the workload is for an adapter, and what to do about it; empty where one may be."""
        if self.adapters.known_count == 0:
            return "there are no adapters: remove it"
        if self.workload.generator == "vtc":
            return "workload.generator is vtc, whose requests are for the base model: remove it"
        streams = self.workload.streams or []
        shares = [self.adapters.base_share if s.base_share is None else s.base_share for s in streams]
        if self.workload.trace is None and min(shares or [self.adapters.base_share]) == 1.0:
            return "adapters.base_share is 1, so that all requests are for the base model: lower it, or remove this"
        return ""

    def _check_arrivals(self) -> None:
        workload, rates = self.workload, self.adapters.rates
        if rates is not None:
            for key in ("arrivals", "streams", "trace"):
                if getattr(workload, key) is not None:
                    raise wrong(
                        "cannot be combined with adapters.rates, which set how requests arrive: remove one of them",
                        "workload",
                        key,
                    )
        elif workload.arrivals is None and workload.streams is None and workload.trace is None:
            raise wrong("is missing: add it, for example {poisson: 10}, or a trace", "workload", "arrivals")
        if self.adapters.known_count is None and workload.trace is None:
            raise wrong("is missing: add the number of adapters", "adapters", "count")
        if workload.generator == "slora":
            popularity = self.adapters.popularity
            given = (
                workload.arrivals and workload.arrivals.gamma,
                popularity and popularity.power,
                workload.duration_s,
            )
            lengths = (workload.input_tokens, workload.output_tokens)
            if not all(given) or self.adapters.base_share or any(d is None or d.uniform is None for d in lengths):
                raise wrong(
                    "is slora, which needs gamma arrivals, power popularity, uniform lengths and duration_s, and no "
                    "base_share",
                    *("workload", "generator"),
                )
        closed = workload.arrivals is not None and workload.arrivals.closed_loop is not None
        if closed and self.adapters.popularity is not None and self.adapters.popularity.drift is not None:
            raise wrong(
                "has drift, which follows the clock, but a closed loop does not: use open arrivals",
                "adapters",
                "popularity",
            )

    def _check_names(self) -> None:
        names = self.adapters.known_names()
        workload, tenants = self.workload, self.tenants
        if workload.trace is None and tenants.map.trace:
            raise wrong("is trace, but workload.trace is missing: choose another map", "tenants", "map")
        if names is None or workload.trace is not None:
            return
        if isinstance(self.adapters.pinned, list):
            _known(self.adapters.pinned, names, "adapter", "adapters", "pinned")
        _check_weights(self.adapters.popularity, names, "adapters", "popularity")
        if isinstance(self.adapters.rates, dict):
            _known(list(self.adapters.rates), names, "adapter", "adapters", "rates")
        for tenant, owned in (tenants.map.owners or {}).items():
            _known(owned, names, "adapter", "tenants", "map", "owners", tenant)
        streams = workload.streams or []
        for index, stream in enumerate(streams):
            try:
                positions = stream_positions(stream, names)
            except LookupError as error:
                raise wrong(
                    f"names {error.args[0]}, but there are {len(names)} adapters: correct it",
                    *("workload", "streams", index, "adapters"),
                ) from None
            own = tuple(names[i] for i in positions)
            _check_weights(stream.popularity, own, "workload", "streams", index, "popularity")
        known = (*(tenants.map.names(names) or ()), *(s.tenant for s in streams if s.tenant))
        unknown = tenants.unknown(known)
        if unknown is not None:
            _known([unknown[1]], known, "tenant", "tenants", unknown[0])
        self._check_targets(names, known)

    def _check_targets(self, names: tuple[str, ...], tenants: tuple[str, ...]) -> None:
        targets = self.slo.targets or []
        for problem in (
            adapter_problem(targets, names, self.adapters.rank_of(len(names))),
            tenant_problem(targets, tenants),
        ):
            if problem is not None:
                place, key, text = problem
                raise wrong(text, "slo", "targets", place, key)
        spec, streams = self.adapters, self.workload.streams or []
        shares = [spec.base_share if s.base_share is None else s.base_share for s in streams] or [spec.base_share]
        based = bool(not names or self.workload.generator == "vtc" or any(shares))
        for place, target in enumerate(targets):
            if target.adapters == BASE and not based:
                text = "is base, but no request is for the base model: raise adapters.base_share"
                raise wrong(text, "slo", "targets", place, "adapters")


def _check_weights(popularity: PopularitySpec | None, names: tuple[str, ...], *path: str | int) -> None:
    if popularity is None or popularity.weights is None:
        return
    if isinstance(popularity.weights, dict):
        _known(list(popularity.weights), names, "adapter", *path, "weights")
    elif len(popularity.weights) != len(names):
        raise wrong(
            f"has {len(popularity.weights)} weights for {len(names)} adapters: give one per adapter", *path, "weights"
        )


def _known(given: list[str], names: tuple[str, ...], noun: str, *path: str | int) -> None:
    known = set(names)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, names[:1000], f"there are {several(names)}")
            raise wrong(f"names the {noun} {name!r}, which does not exist; {hint}", *path)
