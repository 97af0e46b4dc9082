"""The fields of Kubernetes' and KubeRay's objects that the manifests in cluster/ use, as JSON Schema.

Small on purpose: a field that is not here is an error, so that a misspelt one is, too. The manifests have been checked
against the whole schemas by hand, see docs/cluster.md.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
QUANTITY: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}


def struct(required: str = "", **fields: Schema) -> Schema:
    """An object of just these fields."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": fields,
    }


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = struct(requests=QUANTITIES, limits=QUANTITIES)
METADATA = struct("name", name=TEXT, labels=LABELS)
SELECTOR = struct(matchLabels=LABELS)

ENV = struct(
    "name",
    name=TEXT,
    value=TEXT,
    valueFrom=struct(secretKeyRef=struct("name key", name=TEXT, key=TEXT, optional=FLAG)),
)
CONTAINER = struct(
    "name image resources securityContext",
    name=TEXT,
    image=TEXT,
    env=many(ENV),
    ports=many(struct("name containerPort", name=TEXT, containerPort=COUNT)),
    resources=RESOURCES,
    securityContext=struct(allowPrivilegeEscalation=FLAG, capabilities=struct("drop", drop=many(TEXT))),
    volumeMounts=many(struct("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = struct(
    "name",
    name=TEXT,
    persistentVolumeClaim=struct("claimName", claimName=TEXT),
    emptyDir=struct(medium=one_of("Memory"), sizeLimit=QUANTITY),
)
POD = struct(
    "spec",
    metadata=struct(labels=LABELS),
    spec=struct(
        "containers",
        automountServiceAccountToken=FLAG,
        restartPolicy=one_of("Never", "OnFailure", "Always"),
        securityContext=struct(
            runAsNonRoot=FLAG,
            runAsUser=COUNT,
            fsGroup=COUNT,
            seccompProfile=struct("type", type=one_of("RuntimeDefault")),
        ),
        containers=many(CONTAINER),
        volumes=many(VOLUME),
        tolerations=many(struct(key=TEXT, operator=one_of("Exists", "Equal"), effect=one_of("NoSchedule"))),
    ),
)

RAY_CLUSTER = struct(
    "headGroupSpec rayVersion authOptions",
    rayVersion=TEXT,
    authOptions=struct("mode", mode=one_of("token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=struct(
        upscalingMode=one_of("Default", "Aggressive", "Conservative"), idleTimeoutSeconds=COUNT, resources=RESOURCES
    ),
    headGroupSpec=struct("template rayStartParams", rayStartParams=LABELS, template=POD),
    workerGroupSpecs=many(
        struct(
            "groupName template rayStartParams minReplicas maxReplicas",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=LABELS,
            template=POD,
        )
    ),
)
RAY_JOB = struct(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    backoffLimit=COUNT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=POD,
    rayClusterSpec=RAY_CLUSTER,
)
PEER = struct(podSelector=SELECTOR, namespaceSelector=SELECTOR)
RULE = struct("from", **{"from": many(PEER), "ports": many(struct("port", port=COUNT))})

_SPECS = {
    "RayCluster": ("ray.io/v1", RAY_CLUSTER),
    "RayJob": ("ray.io/v1", RAY_JOB),
    "PersistentVolumeClaim": (
        "v1",
        struct(
            "accessModes resources",
            accessModes=many(one_of("ReadWriteMany")),
            storageClassName=TEXT,
            resources=struct("requests", requests=QUANTITIES),
        ),
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        struct("podSelector policyTypes", podSelector=SELECTOR, policyTypes=many(TEXT), ingress=many(RULE)),
    ),
    "PodMonitor": (
        "monitoring.coreos.com/v1",
        struct(
            "selector podMetricsEndpoints",
            selector=SELECTOR,
            podMetricsEndpoints=many(
                struct(
                    "port",
                    port=TEXT,
                    interval={"type": "string", "pattern": r"^\d+s$"},
                    relabelings=many(struct(sourceLabels=many(TEXT), targetLabel=TEXT)),
                )
            ),
        ),
    ),
}


def of(kind: str) -> Schema:
    """Raises KeyError for a kind that no manifest has."""
    version, spec = _SPECS[kind]
    return struct(
        "apiVersion kind metadata spec",
        apiVersion=one_of(version),
        kind=one_of(kind),
        metadata=METADATA,
        spec=spec,
    )
