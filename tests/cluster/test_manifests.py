"""Kubernetes and Ray files against the schemas of Kubernetes and Ray, and against the code that they start.

Kubernetes: kubernetes-validate's copies of the API server's schemas, strict (an unknown field is an error). RayJob has
no schema in any package, so it is held against one made by hand (rayjob_schema.py), and the pod templates inside it
against Kubernetes' PodTemplateSpec.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from launch.cluster.node import parse
from launch.command_line import config_parser, parse_overrides
from tests.cluster.host import REPOSITORY
from tests.cluster.rayjob_schema import RAY_JOB
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

CLUSTER = REPOSITORY / "launch" / "cluster"
VERSIONS = ("1.31", "1.37")  # podFailurePolicy is stable from 1.31 on


def documents(name: str) -> dict[str, dict[str, Any]]:
    """Kind -> object of a manifest."""
    return {item["kind"]: item for item in yaml.safe_load_all((CLUSTER / "kubernetes" / name).read_text())}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Service", "PersistentVolumeClaim", "Job"])
def test_training_objects_fit_the_kubernetes_schema(kind: str, version: str) -> None:
    kubernetes_validate.validate(documents("train.yaml")[kind], version, strict=True)


def test_the_schema_check_finds_mistakes() -> None:
    job = documents("train.yaml")["Job"]
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(jsonschema.ValidationError, match="completionsMode"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_the_job_says_the_same_number_of_nodes_and_ranks_everywhere() -> None:
    items = documents("train.yaml")
    job, service = items["Job"]["spec"], items["Service"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    options = parse(container["args"], {"JOB_COMPLETION_INDEX": str(job["completions"] - 1)})
    assert options.nodes == job["completions"]
    assert options.ranks == int(container["resources"]["limits"]["nvidia.com/gpu"])
    # the first pod's name in the headless service: <job>-0.<subdomain>
    assert pod["subdomain"] == service["metadata"]["name"]
    assert options.master == f"{items['Job']['metadata']['name']}-0.{pod['subdomain']}"
    assert service["spec"]["selector"] == {"job-name": items["Job"]["metadata"]["name"]}
    assert options.port == container["ports"][0]["containerPort"]
    assert items["PersistentVolumeClaim"]["metadata"]["name"] in json.dumps(pod["volumes"])
    assert container["command"][-1] == "launch/cluster/node.py"


def test_the_job_tells_stops_refusals_and_failures_apart() -> None:
    job = documents("train.yaml")["Job"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    rules = {
        tuple(rule.get("onExitCodes", {}).get("values", ())): rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
    }
    assert rules == {(2,): "FailJob", (75,): "Ignore", (): "Ignore"}
    assert "preempted_status=75" in container["args"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # or the API server refuses the policy


def test_settings_of_the_job_make_a_valid_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (container,) = documents("train.yaml")["Job"]["spec"]["template"]["spec"]["containers"]
    options = parse(container["args"], {"JOB_COMPLETION_INDEX": "0"})
    assert Path(options.script[0]).exists()
    words = parse_overrides(config_parser(TrainConfig, "train.py", ""), options.script[1:])
    config = load_config(TrainConfig, words.config, words.overrides)
    config.split_batch(options.nodes * options.ranks)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert all(any(path.startswith(mount) for mount in mounts) for path in (config.output, config.data.cache_dir))


def test_ray_job_fits_its_schema_and_has_valid_pods() -> None:
    job = documents("build_shards.yaml")["RayJob"]
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [cluster["headGroupSpec"], *groups]:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert set(environment) <= {"working_dir", "env_vars", "pip", "py_modules", "excludes"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "backOffLimit"), 2),
        (("spec", "ttlSecondsAfterFinished"), "600"),
        (("spec", "submissionMode"), "k8sJobMode"),
        (("spec", "rayClusterSpec", "rayVersion"), 2.6),
        (("spec", "rayClusterSpec", "autoscalerOptions", "upscalingMode"), "Fast"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), 2**31),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "name"), "cutters"),
    ],
)
def test_the_ray_job_schema_finds_mistakes(place: tuple[str | int, ...], value: object) -> None:
    job = documents("build_shards.yaml")["RayJob"]
    inner: Any = job
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def test_ray_job_runs_the_ray_that_is_installed_here() -> None:
    import ray

    cluster = documents("build_shards.yaml")["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"].rsplit(".", 1)[0] == ray.__version__.rsplit(".", 1)[0]


def test_ray_job_entrypoint_is_understood_by_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    from launch import build_shards

    words = shlex.split(documents("build_shards.yaml")["RayJob"]["spec"]["entrypoint"])
    assert words[:2] == ["python", "launch/build_shards.py"]
    # another source that does not exist: everything up to opening it must work
    words[words.index("--source") + 1] = "/nowhere/manifest.csv"
    words[words.index("--output") + 1] = "/nowhere/output"
    assert build_shards.main(words[2:]) == 2
    assert "unrecognized" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ray_local.yaml", "ray_aws.yaml"])
def test_ray_cluster_files_pass_rays_own_check(name: str) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    validate_config(prepare_config(config))


@pytest.mark.parametrize("name", ["ray_local.yaml", "ray_aws.yaml"])
def test_ray_dashboards_stay_on_loopback(name: str) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert all("--disable-usage-stats" in c for c in [start, *config["worker_start_ray_commands"][1:]])


def test_mounted_folders_of_the_aws_cluster_exist() -> None:
    config = yaml.safe_load((CLUSTER / "ray_aws.yaml").read_text())
    assert config["file_mounts"] == {"~/vidtwin": "."}
    assert (REPOSITORY / "Makefile").exists()


def test_the_image_holds_every_package() -> None:
    copied = [
        line.split()[1:-1]
        for line in (CLUSTER / "kubernetes" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
    ]
    names = {name for names in copied for name in names}
    assert {"setup.py", "trainer", "model", "data_pipeline", "launch", "configs"} <= names
    assert all(Path(REPOSITORY, name).exists() for name in names)
