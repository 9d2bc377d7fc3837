"""slo_targets: the targets of a scenario's SLO, for the adapters that it has once its trace is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loratory.reports.number_text import listed
from loratory.reports.slo_target import AdapterClass, SloGroup, SloTarget, named_class, share_target, time_target
from loratory.scenarios.slo import SloSpec
from loratory.scenarios.slo_targets import BASE, EACH, RankClass, TargetSpec, members
from loratory.scenarios.workload_spec import Slice
from loratory.serving.lora import Adapter
from loratory.sim.fleet_options import RollOut


def slo_targets(slo: SloSpec, adapters: Sequence[Adapter], roll_outs: Sequence[RollOut] = ()) -> tuple[SloTarget, ...]:
    """What ``slo.targets`` demands, each under a name of its own. What it demands of an adapter, it demands of the
    versions that are rolled out as well.

    The adapters that it names exist: `loratory.scenarios.build` refuses others.
    """
    names, ranks = tuple(adapter.name for adapter in adapters), [adapter.rank for adapter in adapters]
    found: list[SloTarget] = []
    for spec in slo.targets or ():
        group = _with_versions(_group(spec, names, ranks), roll_outs)
        if spec.metric is not None:
            assert spec.mark is not None and spec.at_most_s is not None
            target = time_target(spec.metric, spec.mark, spec.at_most_s, group)
        else:
            assert spec.attainment is not None
            target = share_target(spec.attainment, spec.within, group)
        same = sum(target.label == other.label for other in found)  # long lists of names are shortened
        found.append(replace(target, name=f"{target.name} ({same + 1})") if same else target)
    return tuple(found)


def _with_versions(group: SloGroup, roll_outs: Sequence[RollOut]) -> SloGroup:
    chosen = group.adapters
    if chosen is None or chosen.base:
        return group
    more = {order.new.name for order in roll_outs if order.adapter in chosen.names}
    return replace(group, adapters=replace(chosen, names=chosen.names | more)) if more else group


def _group(spec: TargetSpec, names: tuple[str, ...], ranks: Sequence[int]) -> SloGroup:
    tenant = None if spec.tenant == EACH else spec.tenant
    chosen = _class(spec, names, ranks)
    if spec.tenant == EACH or spec.over_tenants is not None:
        return SloGroup(tenant, chosen, "tenant", spec.over_tenants)
    if spec.adapters == EACH or spec.over_adapters is not None:
        return SloGroup(tenant, chosen, "adapter", spec.over_adapters)
    return SloGroup(tenant, chosen)


def _class(spec: TargetSpec, names: tuple[str, ...], ranks: Sequence[int]) -> AdapterClass | None:
    if spec.adapters == BASE:
        return AdapterClass("the base model", base=True)
    found = members(spec, names, ranks)
    if found is None:
        return None
    if isinstance(spec.adapters, RankClass):
        wanted = sorted(set(spec.adapters.ranks))
        return AdapterClass(
            f"adapters of rank{'s' * (len(wanted) > 1)} {listed([*map(str, wanted)])}", frozenset(found)
        )
    if isinstance(spec.adapters, Slice) and len(found) > 1:
        return AdapterClass(f"adapters {found[0]} to {found[-1]}", frozenset(found))
    return named_class(found)
