"""hpa: a HorizontalPodAutoscaler of Kubernetes that scales as planned, and what of the plan it does not say."""

from __future__ import annotations

from loratory.scenarios.fleet_spec import AutoscaleSpec

METRIC = "requests_in_flight"
"""The metric of a pod, whose name a cluster's metrics adapter gives."""

SYNC_S = 15.0
"""How often Kubernetes decides, unless its controller manager is told otherwise."""

_LONGEST_S = 3600
"""Longest stabilization window that Kubernetes accepts."""


def autoscaler_yaml(scale: AutoscaleSpec) -> str | None:
    """A manifest of API ``autoscaling/v2``; None by attainment, for which Kubernetes has no such rule.

    The simulator's rule by queue is that of this controller (`loratory.sim.autoscaler`); replicas start at once there,
    so that the limits on how fast pods are added are lifted.
    """
    if scale.by != "queue":
        return None
    window = min(round(scale.scale_down_after_s), _LONGEST_S)
    return f"""apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: MODEL-SERVER}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: MODEL-SERVER}}
  minReplicas: {scale.least}
  maxReplicas: {scale.most}
  metrics:
  - type: Pods
    pods:
      metric: {{name: {METRIC}}}
      target: {{type: AverageValue, averageValue: "{scale.target:g}"}}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      policies: [{{type: Pods, value: {scale.most}, periodSeconds: 15}}]
    scaleDown:
      stabilizationWindowSeconds: {window}"""


def autoscaler_notes(scale: AutoscaleSpec) -> list[str]:
    """What to put in, and what differs from the plan."""
    between = f"between {scale.least} and {scale.most} replicas"
    if scale.by != "queue":
        return [
            f"The plan scales {between} by attainment ({scale.target:g}), a rule that Kubernetes' autoscaler does not "
            "have: by queue there is a manifest."
        ]
    notes = [
        f"The autoscaler's metric {METRIC} stands for one that your metrics adapter makes of a pod's "
        "vllm:num_requests_running and vllm:num_requests_waiting, added; MODEL-SERVER for your deployment."
    ]
    if scale.interval_s != SYNC_S:
        notes.append(
            f"The plan decides every {scale.interval_s:g} s, Kubernetes every {SYNC_S:g} s unless its controller "
            "manager has another --horizontal-pod-autoscaler-sync-period."
        )
    if scale.scale_down_after_s > _LONGEST_S:
        notes.append(
            f"The plan waits {scale.scale_down_after_s:g} s before replicas go, Kubernetes {_LONGEST_S:,} s at most."
        )
    if scale.warm_adapters:
        notes.append(
            f"The plan loads {scale.warm_adapters} adapters before a new replica gets requests, which none of the "
            "commands does: without it the first requests for each wait."
        )
    return notes
