"""What is in cluster/: manifests against schemas, private addresses and tokens everywhere, images, the dashboard."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_schema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rlpipe.recipe.load import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = [*sorted((CLUSTER / "kuberay").glob("*.yaml")), CLUSTER / "monitoring/podmonitor.yaml"]
AUTOSCALERS = sorted((CLUSTER / "autoscaler").glob("*.yaml"))
DOCKERFILES = sorted((CLUSTER / "docker").glob("*.Dockerfile"))
TEXTS = [file for file in sorted(CLUSTER.rglob("*")) if file.is_file() and file.suffix != ".json"]

by_name = {"ids": lambda file: file.name}


def objects(file: Path) -> list[dict]:
    return list(yaml.safe_load_all(file.read_text()))


def spec_of(name: str) -> dict:
    """The cluster of a manifest."""
    [manifest] = objects(CLUSTER / f"kuberay/{name}.yaml")
    return manifest["spec"]["rayClusterSpec"] if name == "rayjob" else manifest["spec"]


def pods(spec: dict) -> list[dict]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


class TestKubernetes:
    @pytest.mark.parametrize("file", MANIFESTS, **by_name)
    def test_every_object_fits_its_schema(self, file):
        for found in objects(file):
            jsonschema.validate(found, kubernetes_schema.of(found["kind"]))

    def test_the_schema_notices(self):
        [cluster] = objects(CLUSTER / "kuberay/raycluster.yaml")
        cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
            jsonschema.validate(cluster, kubernetes_schema.of("RayCluster"))

    def test_job_and_cluster_are_the_same_cluster(self):
        assert spec_of("rayjob") == spec_of("raycluster")

    def test_only_those_with_the_token_get_in(self):
        spec = spec_of("raycluster")
        assert spec["authOptions"] == {"mode": "token", "secretName": "rlpipe-ray-token"}
        assert spec["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
        assert "dashboard-host" not in spec["headGroupSpec"]["rayStartParams"]  # KubeRay's: the pod network

    def test_the_network_lets_nobody_else_near(self):
        [_, policy] = objects(CLUSTER / "kuberay/common.yaml")
        own = policy["spec"]["podSelector"]["matchLabels"]
        for pod in pods(spec_of("raycluster")):
            assert own.items() <= pod["metadata"]["labels"].items()
        [job] = objects(CLUSTER / "kuberay/rayjob.yaml")
        assert own.items() <= job["spec"]["submitterPodTemplate"]["metadata"]["labels"].items()
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        open_to_others = [rule.get("ports") for rule in policy["spec"]["ingress"][1:]]
        assert open_to_others == [[{"port": 8265}], [{"port": 8080}]]

    def test_the_head_has_no_gpu_and_takes_no_roles_and_workers_have_them(self):
        spec = spec_of("raycluster")
        head, worker = (pod["spec"]["containers"][0]["resources"]["limits"] for pod in pods(spec))
        assert "nvidia.com/gpu" not in head and worker["nvidia.com/gpu"] == "8"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["enableInTreeAutoscaling"] is True

    def test_runs_are_on_a_volume_that_all_see(self):
        [claim, _] = objects(CLUSTER / "kuberay/common.yaml")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for pod in pods(spec_of("raycluster")):
            [runs] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "runs"]
            assert runs["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert {"name": "runs", "mountPath": "/runs"} in pod["spec"]["containers"][0]["volumeMounts"]

    def test_nothing_runs_as_root(self):
        [job] = objects(CLUSTER / "kuberay/rayjob.yaml")
        for pod in [*pods(spec_of("raycluster")), job["spec"]["submitterPodTemplate"]]:
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            [container] = pod["spec"]["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }

    def test_the_job_begins_a_run_and_goes_on_with_it(self):
        [job] = objects(CLUSTER / "kuberay/rayjob.yaml")
        entrypoint = job["spec"]["entrypoint"]
        assert "then exec rlpipe resume /runs/demo" in entrypoint
        begun = re.search(r"exec rlpipe run (\S+) --run-dir /runs/demo (.*)'", entrypoint)
        recipe = load(begun[1], begun[2].split())
        assert {stage.deadlines.placement for stage in recipe.stages.values()} == {1800.0}

    def test_metrics_are_scraped_at_the_port_where_ray_has_them(self):
        [monitor] = objects(CLUSTER / "monitoring/podmonitor.yaml")
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        spec = spec_of("raycluster")
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            ports = {
                port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]
            }
            assert str(ports[endpoint["port"]]) == group["rayStartParams"]["metrics-export-port"]
            assert monitor["spec"]["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


class TestAutoscaler:
    @pytest.mark.parametrize("file", AUTOSCALERS, **by_name)
    def test_ray_takes_it(self, file):
        config = yaml.safe_load(file.read_text())
        validate_config(prepare_config(config))

    def test_rays_validator_notices(self):
        config = yaml.safe_load((CLUSTER / "autoscaler/aws.yaml").read_text()) | {"idle_minutes": 3}
        with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
            validate_config(prepare_config(config))

    @pytest.mark.parametrize("file", AUTOSCALERS, **by_name)
    def test_every_node_has_the_token_and_the_dashboard_is_the_heads_own(self, file):
        config = yaml.safe_load(file.read_text())
        started = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"] if "ray start" in c]
        assert len(started) == 2 and all(command.startswith("RAY_AUTH_MODE=token ") for command in started)
        assert "--dashboard-host=127.0.0.1" in started[0]
        assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}

    def test_machines_on_aws_have_no_public_address_and_no_open_port(self):
        provider = yaml.safe_load((CLUSTER / "autoscaler/aws.yaml").read_text())["provider"]
        assert provider["use_internal_ips"] is True
        [rule] = provider["security_group"]["IpPermissions"]
        assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (22, 22, [{"CidrIp": "10.0.0.0/8"}])


class TestImages:
    @pytest.mark.parametrize("file", DOCKERFILES, **by_name)
    def test_what_is_copied_is_there_and_is_sent_along(self, file):
        sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = [line.split()[1:-1] for line in file.read_text().splitlines() if line.startswith("COPY ")]
        sources = {source for sources in copied for source in sources}
        assert sources and sources <= sent and all((ROOT / source).exists() for source in sources)

    @pytest.mark.parametrize("file", DOCKERFILES, **by_name)
    def test_it_has_what_the_setup_asks_for(self, file):
        text, route = file.read_text(), file.name.partition(".")[0]
        python = re.search(rf"RUN ROUTE={route} PYTHON=python(3\.\d+) .*bash tools/setup\.sh /opt/venv", text)[1]
        assert python in re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
        assert {"g++", "bubblewrap", "wget"} <= set(text.split())
        assert re.search(r"^USER rlpipe$", text, re.MULTILINE)

    def test_the_toolkit_is_that_of_the_requirements(self):
        image = re.search(r"^FROM nvidia/cuda:([\d.]+)-devel", (CLUSTER / "docker/gpu.Dockerfile").read_text(), re.M)[1]
        assert f"cuda-toolkit=={image}\n" in (ROOT / "requirements/gpu.txt").read_text()

    def test_head_and_workers_are_of_one_image(self):
        for name in ("raycluster", "rayjob"):
            spec = spec_of(name)
            groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
            images = {c["image"] for group in groups for c in group["template"]["spec"]["containers"]}
            assert images == {"registry.example.com/rlpipe:gpu"}
        docker = yaml.safe_load((CLUSTER / "autoscaler/aws.yaml").read_text())["docker"]
        assert docker["image"] == "registry.example.com/rlpipe:gpu" and "head_image" not in docker

    def test_ray_is_the_same_everywhere(self):
        pinned = {
            re.search(r"^ray==(\S+)", (ROOT / f"requirements/{r}.txt").read_text(), re.M)[1] for r in ("cpu", "gpu")
        }
        assert pinned == {spec_of("raycluster")["rayVersion"]}


class TestAll:
    @pytest.mark.parametrize("file", [f for f in TEXTS if f.name != "grafana.json"], **by_name)
    def test_it_says_what_has_not_been_run(self, file):
        head = file.read_text().partition("\nFROM ")[0][:2000]
        assert "Checked" in head and re.search(r"\bNOT (been )?(RUN|BUILT|run)\b", head)

    @pytest.mark.parametrize("file", TEXTS, **by_name)
    def test_nothing_listens_to_everybody_and_authentication_is_on(self, file):
        text = file.read_text()
        assert not re.search(r"(?<!\d)0\.0\.0\.0", text) and "LoadBalancer" not in text and "NodePort" not in text
        assert not re.search(r"AUTH_MODE\W+disabled", text)
        assert not re.search(r"AUTH_TOKEN=[\w-]{16,}", text), "a token has no business here"

    def test_the_slurm_script_is_sound_bash(self):
        subprocess.run(["bash", "-n", CLUSTER / "slurm/rlpipe.sbatch"], check=True)


def test_the_dashboard_is_one():
    dashboard = json.loads((CLUSTER / "monitoring/grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) and all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(expressions) > 20
    for expression in expressions:
        assert set(re.findall(r"\$(\w+)", expression)) <= known and expression.count("(") == expression.count(")")
