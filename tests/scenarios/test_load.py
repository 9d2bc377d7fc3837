"""Scenario files: what loads, and the one line that says why something does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loratory.errors import InputError
from loratory.scenarios.load import apply_overrides, dump, find, json_schema, load_scenario, load_text
from loratory.scenarios.schema import Scenario

GOOD = """\
name: x
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4}
adapters:
  count: 30
  ranks: {8: 0.5, 16: 0.5}
  popularity: {zipf: 1.0}
workload:
  arrivals: {poisson: 3}
  input_tokens: {lognormal: {mean: 100, cv: 1}}
  output_tokens: 128
  duration_s: 10
"""


def complaint(text: str) -> str:
    with pytest.raises(InputError) as caught:
        load_text(text, "my.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_scenario_loads_with_defaults() -> None:
    scenario = load_text(GOOD)
    assert scenario.engine.max_loras == 4
    assert scenario.adapters.ranks == {8: 0.5, 16: 0.5}
    assert scenario.workload.output_tokens is not None and scenario.workload.output_tokens.fixed == 128
    assert (scenario.policies, scenario.seeds, scenario.cluster.replicas) == (["fifo"], [0], 1)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("max_loras: 4", "max_lora: 4", 4, "engine.max_lora: unknown key; did you mean 'max_loras'?"),
        ("poisson: 3", "poison: 3", 10, "workload.arrivals.poison: unknown key; did you mean 'poisson'?"),
        ("gpu: h100-80gb", "gpu: h100-80gb\nslo: {ttft_p98_s: 1}", 4, "slo.ttft_p98_s: unknown key; did you mean"),
        ("gpu: h100-80gb", "gpu: h100-80gb\nzzz: 1", 4, "zzz: unknown key; known keys: name, description"),
        ("count: 30", "count: thirty", 6, "adapters.count should be a whole number, not 'thirty'"),
        ("count: 30", "count: yes", 6, "adapters.count should be a number, not true"),
        ("{max_loras: 4}", "{max_loras: true}", 4, "engine.max_loras should be a number, not true"),
        ("{max_loras: 4}", "4", 4, "engine should be a mapping of keys to values, such as {as: ...}, not 4"),
        ("{max_loras: 4}", "{max_loras: 4, max_cpu_loras: 2}", 4, "engine.max_cpu_loras is 2, below max_loras (4): "),
        ("poisson: 3", "poisson: -3", 10, "workload.arrivals.poisson should be above 0, not -3"),
        ("poisson: 3", "poisson: .inf", 10, "workload.arrivals.poisson should be a finite number, not inf"),
        ("poisson: 3", "poisson: 3, constant: 3", 10, "needs exactly one of poisson"),
        ("{poisson: 3}", "poissn", 10, "workload.arrivals should be one of poisson, gamma"),
        ("8: 0.5,", "8: 0,", 7, "adapters.ranks.8 should be above 0, not 0"),
        ("8: 0.5,", "eight: 1,", 7, "adapters.ranks.eight: the rank 'eight' should be a whole number above 0"),
        (
            "16: 0.5",
            "64: 0.5",
            7,
            "adapters.ranks has 64, but engine.max_lora_rank is 16: raise it to 64 or lower the rank",
        ),
        ("{zipf: 1.0}", "zipff", 8, "did you mean 'zipf'?"),
        ("{zipf: 1.0}", "{zipf: 1, uniform: true}", 8, "it has uniform and zipf"),
        ("{zipf: 1.0}", "{weights: [1, 2]}", 8, "adapters.popularity.weights has 2 weights for 30 adapters"),
        ("{zipf: 1.0}", "{weights: {adaptor-007: 2}}", 8, "did you mean 'adapter-007'?"),
        ("{zipf: 1.0}", "{weights: [0, 0]}", 8, "adapters.popularity.weights has no weight above 0"),
        (
            "count: 30",
            "count: 30\n  pinned: 4",
            7,
            "adapters.pinned names 4 adapters, but engine.max_loras is 4 and others need a slot",
        ),
        ("count: 30", "count: 3\n  pinned: 5", 7, "adapters.pinned is 5, but there are 3 adapters"),
        ("count: 30", "count: 30\n  pinned: [adapter-1]", 7, "adapters.pinned names the adapter 'adapter-1'"),
        ("count: 30", "count: 30\n  initial_tier: host", 7, "raise engine.max_cpu_loras to 30"),
        ("count: 30", "count: 30\n  initial_tier: gpu", 7, "should be one of remote, disk, host, not 'gpu'"),
        ("count: 30", "count: 30\n  names: [a, a]", 7, "adapters.names repeats 'a'"),
        ("count: 30", "count: 30\n  rates: 0.1", 9, "adapters.popularity cannot be combined with rates"),
        ("  count: 30\n", "", 5, "adapters.count is missing"),
        ("duration_s: 10", "requests: 5\n  duration_s: 10", 9, "workload needs either duration_s or requests"),
        ("  duration_s: 10\n", "", 9, "workload needs either duration_s or requests"),
        ("  output_tokens: 128\n", "", 9, "workload.output_tokens is missing: add it, for example"),
        ("output_tokens: 128", "output_tokens: 1.5", 12, "workload.output_tokens should be a whole number, not 1.5"),
        ("output_tokens: 128", "output_tokens: 0", 12, "workload.output_tokens should be at least 1, not 0"),
        ("output_tokens: 128", "output_tokens: {uniform: [9, 2]}", 12, "uniform has lo 9 above hi 2: swap them"),
        ("output_tokens: 128", "output_tokens: {uniform: [9]}", 12, "uniform.1 is missing: give [lo, hi]"),
        ("output_tokens: 128", "output_tokens: {empirical: no.csv}", 12, "no file 'no.csv'"),
        (
            "mean: 100, cv: 1",
            "mean: 100",
            11,
            "workload.input_tokens.lognormal.cv is missing: add it (standard deviation",
        ),
        ("duration_s: 10", "duration_s: 10\n  trace: no.csv", 14, "workload.trace names no file 'no.csv'"),
        ("duration_s: 10", "duration_s: 10\n  format: azure", 14, "workload.format needs workload.trace"),
        ("duration_s: 10", "duration_s: 10\n  max_tokens: exactly", 14, "did you mean 'exact'?"),
        (
            "duration_s: 10",
            "duration_s: 10\n  predicted_tokens: {noise: 0}",
            14,
            "predicted_tokens.noise should be above 0",
        ),
        ("poisson: 3", "closed_loop: {concurrency: 2}", 10, "replace duration_s by requests"),
        ("gpu: h100-80gb\n", "", 1, "gpu is missing: add it (catalogue name"),
        ("gpu: h100-80gb", "gpu: h100-80gb\nseeds: []", 4, "seeds is empty: give at least one"),
        ("gpu: h100-80gb", "gpu: h100-80gb\nseeds: 3", 4, "seeds should be a list, not 3"),
        ("gpu: h100-80gb", "gpu: h100-80gb\nseeds: [1, 1]", 4, "seeds repeats an entry"),
        ("gpu: h100-80gb", "gpu: h100-80gb\npolicies: []", 4, "policies is empty"),
        ("gpu: h100-80gb", "gpu: h100-80gb\ncost: {kind: liner}", 4, "did you mean 'linear'?"),
        (
            "gpu: h100-80gb",
            "gpu: h100-80gb\ncost: {decode_base_s: 1}",
            4,
            "needs kind: roofline, kernels, linear or profile",
        ),
        ("gpu: h100-80gb", "gpu: h100-80gb\ncost: {kind: linear, decode_bas_s: 1}", 4, "did you mean 'decode_base_s'?"),
        ("gpu: h100-80gb", "gpu: h100-80gb\ncost: {kind: linear}", 4, "cost.decode_base_s is missing"),
        ("gpu: h100-80gb", "gpu: h100-80gb\ntenants: {map: by_adaptor}", 4, "did you mean 'by_adapter'?"),
        ("gpu: h100-80gb", "gpu: h100-80gb\ntenants: {weights: {nobody: 2}}", 4, "names the tenant 'nobody'"),
        ("gpu: h100-80gb", "gpu: h100-80gb\nwarmup_s: 10", 4, "warmup_s is 10, but the workload lasts 10 s"),
        ("gpu: h100-80gb", "gpu: h100-80gb\ngpu: l4", 4, "gpu is given twice"),
        ("gpu: h100-80gb", "gpu: [h100-80gb", 4, "is not YAML"),
        ("poisson: 3", "gamma: {rate: 3}", 10, "workload.arrivals.gamma.cv is missing"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_remedy(old: str, new: str, line: int, says: str) -> None:
    assert old in GOOD
    message = complaint(GOOD.replace(old, new, 1))
    assert message.startswith(f"my.yaml:{line}: ")
    assert says in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "my.yaml is empty"),
        ("# only a comment\n", "my.yaml is empty"),
        ("- a\n- b\n", "should be a mapping"),
        ("just words", "should be a mapping"),
        ("a: &x [*x]\n", "an alias refers to itself"),
        ("a: !!python/object:os.system x\n", "is not YAML"),
        ("a: b: c\n", "is not YAML"),
        ("? [1, 2]\n: 3\n", "a key should be a word"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("{" * 3000, "nested too deeply"),
    ],
)
def test_what_is_not_a_scenario_at_all(text: str, says: str) -> None:
    assert says in complaint(text)


def test_a_multitude_of_aliases_does_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "aliases multiply" in complaint("\n".join(lines))


def test_merge_keys_work_and_own_keys_win() -> None:
    text = GOOD.replace("name: x", "name: x\ntiers: &t {disk_latency_s: 0.5, remote_latency_s: 0.7}").replace(
        "{max_loras: 4}", "{max_loras: 4}\nwarmup_s: 1"
    )
    assert load_text(text).tiers.disk_latency_s == 0.5
    streams = "streams:\n    - &s {arrivals: {poisson: 1}, tenant: a}\n    - {<<: *s, tenant: b}"
    merged = load_text(GOOD.replace("arrivals: {poisson: 3}", streams)).workload.streams
    assert merged is not None
    assert [(s.tenant, s.arrivals.poisson) for s in merged] == [("a", 1.0), ("b", 1.0)]


def test_the_first_problem_comes_with_the_number_of_others() -> None:
    message = complaint(GOOD.replace("max_loras: 4", "max_lora: 4").replace("poisson: 3", "poisson: -3"))
    assert message.endswith("(and 1 more problem)")
    assert "max_lora" in message


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such scenario file; did you mean 'quickstart'"):
        load_scenario("quickstrat")
    with pytest.raises(InputError, match="no such scenario file"):
        load_scenario(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_scenario(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="is not text"):
        load_scenario(tmp_path / "binary.yaml")
    assert find("quickstart").name == "quickstart.yaml"


def test_overrides_change_values_and_replace_alternatives() -> None:
    scenario = load_text(
        GOOD,
        overrides=["engine.max_loras=8", "workload.arrivals.constant=5", "adapters.ranks.16=0.1", "seeds=[4, 5]"],
    )
    assert scenario.engine.max_loras == 8
    assert scenario.workload.arrivals is not None and scenario.workload.arrivals.kind == "constant"
    assert scenario.adapters.ranks == {8: 0.5, 16: 0.1}
    assert scenario.seeds == [4, 5]
    assert load_text(GOOD, overrides=["adapters.popularity.drift={period_s: 3}"]).adapters.popularity.kind == "drift"  # type: ignore[union-attr]
    assert load_text(GOOD, policies=["deadline"]).policies == ["deadline"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("engine.max_lora=8", "--set engine.max_lora=8: engine.max_lora: unknown key; did you mean 'max_loras'?"),
        ("engine.max_loras=many", "--set engine.max_loras=many: engine.max_loras should be a whole number"),
        ("seed=3", "--set seed=3: seed: unknown key; did you mean 'seeds'?"),
        ("replicas=4", "--set replicas=4: replicas: unknown key; put it in cluster"),
        ("max_loras=4", "max_loras: unknown key; put it in engine"),
        ("policy_timeout_s=4", "policy_timeout_s: unknown key; set the option --policy-timeout of loratory run"),
        ("engine.max_loras", "should be key=value"),
        (
            "workload.arrivals.poisson=-1",
            "--set workload.arrivals.poisson=-1: workload.arrivals.poisson should be above 0",
        ),
        ("name=[", "has a value that is not YAML"),
        ("workload.arrivals.gama.cv=1", "workload.arrivals.gama: unknown key; did you mean 'gamma'?"),
    ],
)
def test_a_wrong_override_names_itself(setting: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_text(GOOD, "my.yaml", overrides=[setting])
    assert says in str(caught.value)


def test_apply_overrides_leaves_its_argument_alone() -> None:
    raw = yaml.safe_load(GOOD)
    changed = apply_overrides(raw, ["workload.streams=[{arrivals: 1}]", "workload.streams.0.tenant=t"])
    assert changed["workload"]["streams"] == [{"arrivals": 1, "tenant": "t"}]
    assert raw == yaml.safe_load(GOOD)
    with pytest.raises(InputError, match="streams has 1 items: give a position"):
        apply_overrides(changed, ["workload.streams.1.tenant=t"])


def test_files_are_found_next_to_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "lengths.txt").write_text("5\n7\n")
    (tmp_path / "deep" / "s.yaml").write_text(
        GOOD.replace("output_tokens: 128", "output_tokens: {empirical: lengths.txt}")
    )
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario("deep/s.yaml")
    lengths = scenario.workload.output_tokens
    assert lengths is not None and lengths.empirical is not None
    assert lengths.empirical.file == str(tmp_path / "deep" / "lengths.txt")
    assert "../deep/lengths.txt" in dump(scenario, relative_to=tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s.yaml").write_text(dump(scenario, relative_to=tmp_path / "out"))
    assert load_scenario("out/s.yaml") == scenario


def test_the_json_schema_describes_every_key() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Scenario.model_fields)
    arrivals = schema["$defs"]["ArrivalsSpec"]
    assert {"type": "number"} in arrivals["anyOf"]
    keywords = str(schema)
    assert "'ge':" not in keywords and "'gt':" not in keywords
