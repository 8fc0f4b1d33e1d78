"""The files in clusters/, checked with Ray's own validation, KubeRay's resource definitions, and a shell."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.label_utils import parse_node_labels_json
from ray.autoscaler._private.util import prepare_config, validate_config

from medr1_ray.config.loading import load_config
from tests.repository import REPOSITORY

CLUSTERS = REPOSITORY / "clusters"
LAUNCHED = ("local", "aws", "gcp")
KUBERNETES = {"raycluster": "ray.io_rayclusters.yaml", "rayjob": "ray.io_rayjobs.yaml"}

Manifest = dict[str, Any]
Schema = dict[str, Any]


def load(path: Path) -> Manifest:
    manifest = yaml.safe_load(path.read_text())
    assert isinstance(manifest, dict)
    return manifest


def validate(value: Any, schema: Schema) -> None:
    """Validate without checking the schema itself, which takes seconds for Kubernetes' schemas."""
    jsonschema.Draft202012Validator(schema).validate(value)


def validate_launch(config: Manifest) -> Manifest:
    """Run the checks of `ray up` that need no cloud."""
    validate_config(prepared := prepare_config(copy.deepcopy(config)))
    for node_type in prepared["available_node_types"].values():
        parse_node_labels_json(json.dumps(node_type.get("labels", {})))
    return prepared


@pytest.mark.parametrize("name", LAUNCHED)
def test_launch_files_are_valid_for_ray(name: str) -> None:
    config = load(CLUSTERS / f"{name}.yaml")
    assert validate_launch(config).items() >= config.items()


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("local", lambda c: c.update(head_setup_command=[])),
        ("aws", lambda c: c.update(max_worker=3)),
        ("aws", lambda c: c["available_node_types"]["rollout"].update(max_workers="8")),
        ("aws", lambda c: c["available_node_types"]["rollout"].update(max_worker=8)),
        ("aws", lambda c: c["available_node_types"]["rollout"].update(labels={"ray.io/market-type": "spot"})),
        ("gcp", lambda c: c["docker"].update(images="x")),
        ("gcp", lambda c: c.update(head_node_type="haed")),
    ],
)
def test_a_wrong_field_of_a_launch_file_is_found(name: str, break_it: Callable[[Manifest], None]) -> None:
    config = load(CLUSTERS / f"{name}.yaml")
    break_it(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_launch(config)


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_learners_are_on_demand_and_rollouts_are_spot_from_zero(name: str) -> None:
    types = load(CLUSTERS / f"{name}.yaml")["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert (types["learner"]["min_workers"], types["rollout"]["min_workers"]) == (1, 0)
    markets = {role: node_type["labels"]["market-type"] for role, node_type in types.items()}
    assert markets == {"head": "on-demand", "learner": "on-demand", "rollout": "spot"}
    spot = {role for role, node_type in types.items() if "spot" in json.dumps(node_type["node_config"]).lower()}
    assert spot == {"rollout"}


def aws_schema() -> Callable[[Manifest], None]:
    """Return a check of RunInstances arguments by botocore's validator, which refuses wrong names and types."""
    session = needs("botocore.session")
    validation = needs("botocore.validate")
    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    validator = validation.ParamValidator()

    def check(node_config: Manifest) -> None:
        # Ray adds the instance counts itself.
        report = validator.validate(node_config | {"MinCount": 1, "MaxCount": 1}, shape)
        if report.has_errors():
            raise ValueError(report.generate_report())

    return check


def gcp_schema() -> Callable[[Manifest], None]:
    """Return a check of an Instance by the description of the compute API that Google's client contains."""
    client = needs("googleapiclient")
    description = Path(client.__file__).parent / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(description.read_text())["schemas"]
    draft: Schema = json.loads(json.dumps(schemas).replace('"$ref": "', '"$ref": "#/definitions/'))
    draft = {name: closed(schema) for name, schema in draft.items()}

    def check(node_config: Manifest) -> None:
        validate(node_config, {"$ref": "#/definitions/Instance", "definitions": draft})

    return check


def needs(module: str) -> Any:
    """Return a cloud's client module, or skip the test.

    Only `ray up` needs the clients. They are in no extra, because boto3 conflicts with the python-dateutil of
    constraints.txt.
    """
    return pytest.importorskip(module, reason=f"{module} is not installed: node_config is not checked")


@pytest.mark.parametrize(("name", "schema"), [("aws", aws_schema), ("gcp", gcp_schema)])
def test_machines_are_as_the_clouds_describe_them(
    name: str, schema: Callable[[], Callable[[Manifest], None]]
) -> None:
    check = schema()
    for node_type in load(CLUSTERS / f"{name}.yaml")["available_node_types"].values():
        check(node_type["node_config"])
        with pytest.raises((ValueError, jsonschema.ValidationError)):
            check(node_type["node_config"] | {"InstanceKind": "x"})


def closed(schema: Any) -> Any:
    """Return the schema with unknown fields refused, which Kubernetes would silently drop."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.fixture(scope="module")
def definitions(shared_data: Path) -> dict[str, Schema]:
    """KubeRay's v1 schemas, by the name of our file."""
    found = {}
    for name, file in KUBERNETES.items():
        definition = yaml.load((shared_data / "kuberay_crds" / file).read_text(), Loader=yaml.CSafeLoader)
        (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # defined by Kubernetes, left open here
        found[name] = schema
    return found


@pytest.mark.parametrize("name", KUBERNETES)
def test_manifests_are_valid_for_kuberay(name: str, definitions: dict[str, Schema]) -> None:
    validate(load(CLUSTERS / "kubernetes" / f"{name}.yaml"), definitions[name])


def worker_group(job: Manifest) -> Manifest:
    group: Manifest = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    return group


@pytest.mark.parametrize(
    "break_it",
    [
        lambda job: job["spec"].update(entryPoint="x"),
        lambda job: job["spec"].update(ttlSecondsAfterFinished="600"),
        lambda job: job["spec"]["rayClusterSpec"]["autoscalerOptions"].update(version="v3"),
        lambda job: worker_group(job).pop("maxReplicas"),
        lambda job: worker_group(job)["template"]["spec"]["containers"][0].update(volumeMount=[]),
        lambda job: worker_group(job)["template"]["spec"]["tolerations"][0].update(effects="NoSchedule"),
    ],
)
def test_a_wrong_field_of_a_manifest_is_found(
    break_it: Callable[[Manifest], None], definitions: dict[str, Schema]
) -> None:
    job = load(CLUSTERS / "kubernetes" / "rayjob.yaml")
    break_it(job)
    with pytest.raises(jsonschema.ValidationError):
        validate(job, definitions["rayjob"])


def test_pods_and_claims_beside_ray_have_kubernetes_fields(definitions: dict[str, Schema]) -> None:
    """Uses the schemas of pod template and volume claim inside KubeRay's definition."""
    template = definitions["raycluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    prepull = load(CLUSTERS / "kubernetes" / "prepull.yaml")
    validate(prepull["spec"]["template"], template)
    volume = template["properties"]["spec"]["properties"]["volumes"]["items"]
    claim = volume["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    storage = load(CLUSTERS / "kubernetes" / "storage.yaml")
    validate(storage["spec"], claim)
    for schema, value in ((template, prepull["spec"]["template"]), (claim, storage["spec"])):
        with pytest.raises(jsonschema.ValidationError):
            validate(value | {"acessModes": []}, schema)


def test_the_job_runs_on_the_cluster_that_raycluster_describes() -> None:
    cluster, job = (load(CLUSTERS / "kubernetes" / f"{name}.yaml")["spec"] for name in KUBERNETES)
    assert job["rayClusterSpec"] == cluster
    learner, rollout = cluster["workerGroupSpecs"]
    assert (learner["labels"], rollout["labels"]) == ({"market-type": "on-demand"}, {"market-type": "spot"})
    pod = rollout["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "cloud.google.com/gke-spot" in {toleration.get("key") for toleration in pod["tolerations"]}
    for group in (cluster["headGroupSpec"], learner, rollout):
        spec = group["template"]["spec"]
        mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        claim = volumes[mounts["/runs"]]["persistentVolumeClaim"]["claimName"]
        assert claim == load(CLUSTERS / "kubernetes" / "storage.yaml")["metadata"]["name"]


def test_the_jobs_training_is_valid_and_fits_the_groups() -> None:
    job = load(CLUSTERS / "kubernetes" / "rayjob.yaml")["spec"]
    words = job["entrypoint"].replace("/opt/medr1_ray", str(REPOSITORY)).split()
    assert words[:3] == ["python", "-m", "medr1_ray.train"]
    files = [Path(path) for option, path in pairwise(words) if option == "--config"]
    config = load_config(files, [word for word in words if "=" in word])
    learner, rollout = job["rayClusterSpec"]["workerGroupSpecs"]

    def gpus(group: Manifest) -> int:
        return int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])

    assert config.learner.world_size * config.learner.gpus_per_rank <= learner["maxReplicas"] * gpus(learner)
    assert config.rollout.max_actors == rollout["maxReplicas"] * gpus(rollout) / config.rollout.gpus_per_actor
    assert (config.cluster.labels.learner, config.cluster.labels.rollout) == (learner["labels"], rollout["labels"])
    assert str(config.run.dir).startswith("/runs/")


def test_versions_are_those_that_were_tested() -> None:
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    version = re.search(r'__version__ = "(.+)"', (REPOSITORY / "medr1_ray/__init__.py").read_text())
    assert version is not None
    cluster = load(CLUSTERS / "kubernetes" / "raycluster.yaml")["spec"]
    assert cluster["rayVersion"] == pins["ray"]
    files = [*CLUSTERS.glob("*.yaml"), *CLUSTERS.glob("kubernetes/*.yaml"), CLUSTERS / "Dockerfile"]
    tags = {tag for file in files for tag in re.findall(r"medr1_ray:([\w.]+)", file.read_text())}
    assert tags == {version[1]}
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.+)", dockerfile, re.M)[0].startswith("python:3.11.")
    for line in re.findall(r"pip install.*", dockerfile):
        assert "--constraint constraints.txt" in line or "--no-deps" in line


@pytest.mark.parametrize("told", [False, True])
def test_slurm_starts_ray_on_all_nodes_and_ends_in_a_submission(tmp_path: Path, told: bool) -> None:
    """Runs the script with fake commands that record how they were called; `told` by Slurm that its time is over."""
    calls, commands = tmp_path / "calls", tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, action in {
        "scontrol": "echo node-a; echo node-b",
        "srun": f'echo $(echo "srun $*" | tr -s "\\n " " ") >> {calls}',
        "ray": f"""
            while [[ $2 = submit && $(grep -c ^srun {calls}) != 2 ]]; do sleep 0.05; done
            echo "ray $*" >> {calls}
            while [[ $2 = submit && {int(told)} = 1 ]] && ! grep -q "^ray job stop" {calls}; do sleep 0.05; done
            if [[ $2 = submit ]]; then exit 3; fi""",
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{action}\n")
        (commands / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_ON_NODE": "4",
    }
    arguments = ["bash", str(CLUSTERS / "slurm.sh"), "--config", "a b.yaml", "train.steps=3"]
    script = subprocess.Popen(arguments, env=os.environ | slurm, stdout=subprocess.DEVNULL)
    if told:
        while not calls.exists() or "ray job submit" not in calls.read_text():
            assert script.poll() is None
            time.sleep(0.05)
        script.terminate()
    assert script.wait(300) == 3, "what the job ended with"
    *called, last = (call for call in calls.read_text().splitlines() if not call.startswith("ray job list"))
    submitted = (
        "ray job submit --address http://node-a:8265 --submission-id medr1-17-0 --working-dir . -- "
        "python -m medr1_ray.train --config a b.yaml train.steps=3"
    )
    if told:
        assert last == "ray job stop --address http://node-a:8265 medr1-17-0"
        last = called.pop()
    assert last == submitted
    started = sorted(call for call in called if call.startswith("srun"))
    assert len(started) == 2
    assert "--exclude=node-a" in started[0]
    assert "--address=node-a:6379" in started[0]
    assert "--nodelist=node-a ray start --head" in started[1]


def test_slurm_says_what_is_missing() -> None:
    done = subprocess.run(["bash", str(CLUSTERS / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give the arguments of medr1_ray.train" in done.stderr
