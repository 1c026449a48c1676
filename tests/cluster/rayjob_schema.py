"""RayJob (ray.io/v1) as a strict JSON schema: names, types and choices of its fields, and which are required.

Facts taken by hand from KubeRay's API types, from which its CRD is generated: `rayjob_types.go` and
`raycluster_types.go` in ray-operator/apis/ray/v1 of github.com/ray-project/kuberay. Pods are any object here:
Kubernetes' own schema checks them. Status and the fields of features behind a gate are left out.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}  # the API's int32
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}  # a number in YAML is refused by the API server
ANY_OBJECT: Schema = {"type": "object"}


def structure(required: str = "", /, **fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


AUTOSCALER = structure(
    resources=ANY_OBJECT,
    image=STRING,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    env=listed(ANY_OBJECT),
    envFrom=listed(ANY_OBJECT),
    volumeMounts=listed(ANY_OBJECT),
    securityContext=ANY_OBJECT,
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
)
HEAD_GROUP = structure(
    "rayStartParams template",
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService=ANY_OBJECT,
    enableIngress=FLAG,
    rayStartParams=STRINGS,
    template=ANY_OBJECT,
)
WORKER_GROUP = structure(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=STRINGS,
    template=ANY_OBJECT,
    scaleStrategy=structure(workersToDelete=listed(STRING)),
)
RAY_CLUSTER = structure(
    "headGroupSpec",
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=listed(WORKER_GROUP),
    rayVersion=STRING,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=STRINGS,
    suspend=FLAG,
)
RAY_JOB_SPEC = structure(
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=ANY_OBJECT,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=structure(backoffLimit=COUNT),
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
RAY_JOB = structure(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=ANY_OBJECT,
    spec=RAY_JOB_SPEC,
)
