"""The documentation names every metric and label that a server shows, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from metered import metered
from prometheus_client.parser import text_string_to_metric_families
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, World, adapter, workload

TEXT = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
KNOWN = {"model_name", "engine", "le", "enable_prefix_caching"}


def test_the_tables_are_complete() -> None:
    config = EngineConfig(num_gpu_blocks=20, max_loras=1)
    world = World(workload([{"adapter": 1, "out": 3}] * 9, [adapter(1)]), (adapter(1),), config, ToyCost())
    metrics = metered(world, POLICIES["fifo"]).metrics
    metrics.counts.queue_limit = 3
    metrics.response("/v1/models", 200)
    metrics.refused("queue")
    names, labels = set(), set()
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        if not family.name.startswith("process_"):
            names.add(family.name + "_total" * (family.type == "counter"))
            labels |= {label for sample in family.samples for label in sample.labels}
    told = set(re.findall(r"`((?:vllm|loratory):\w+)`", TEXT))
    assert told == names
    assert labels - KNOWN <= set(re.findall(r"`(\w+)`", TEXT))
