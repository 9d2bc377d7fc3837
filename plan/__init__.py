"""Plan: from a scenario with a service-level objective to the fleet, the settings and the policy that meet it.

`loratory.plan.run.plan_scenario` answers one question (fleet, autoscale, capacity, settings, sensitivity);
docs/planning.md is the guide, docs/architecture.md lists the files.
"""
