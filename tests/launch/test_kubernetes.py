"""The JobSet is one, by the models of its definition, and means what it should."""

import shlex

import pytest
import yaml
from command import ROOT
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet as JobSet

from cfgjax.base import bucket_clients
from cfgjax.cli import main as cli

TRAIN = "train --config=experiments/digits.py --workdir=/runs/p_uncond=0.1 --config.data.split=train"
DEVICES = {
    "none": "--hosts=2",
    "gpu": "--hosts=4 --gpus_per_host=8",
    "tpu": "--hosts=4 --tpus_per_host=4 --tpu_accelerator=tpu-v5-lite-podslice --tpu_topology=4x4 --namespace=team",
}


def printed(capsys, flags):
    words = f"launch kubernetes --image=me/cfgjax:1 --claim=runs {flags} --dry_run -- {TRAIN}"
    assert cli.run_command(shlex.split(words)) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture(params=DEVICES)
def manifest(request, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    return printed(capsys, DEVICES[request.param])


def job_of(manifest):
    (group,) = manifest["spec"]["replicatedJobs"]
    return group["template"]["spec"]


def test_the_models_of_jobset_and_of_kubernetes_take_it_and_drop_nothing(manifest):
    """A field that they do not know would be missing from what they give back."""
    assert JobSet.from_dict(manifest).to_dict() == manifest


def test_the_job_is_one_by_the_schema_of_kubernetes(manifest):
    validate = pytest.importorskip(
        "kubernetes_validate", reason="108 MB of schemas; by hand: pip install kubernetes-validate"
    )
    metadata = {"name": "x"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job_of(manifest)}
    validate.validate(job, "1.31", strict=True)


def test_processes_find_one_another_and_exit_codes_mean_what_they_should(manifest):
    job, name = job_of(manifest), manifest["metadata"]["name"]
    assert name == "p-uncond-0-1"
    assert job["completions"] == job["parallelism"] and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    first = f"{name}-{manifest['spec']['replicatedJobs'][0]['name']}-0-0.{manifest['spec']['network']['subdomain']}"
    assert environment["CFGJAX_COORDINATOR"] == f"{first}:12355"
    assert environment["CFGJAX_NUM_PROCESSES"] == str(job["completions"])
    assert environment["CFGJAX_GRACE_SECONDS"] == str(pod["terminationGracePeriodSeconds"])
    assert container["command"] == ["python", "-m", "cfgjax", *TRAIN.split()]
    rules = job["podFailurePolicy"]["rules"]
    actions = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules if "onExitCodes" in rule}
    assert actions == {2: "FailJob", 75: "Ignore"}
    assert pod["restartPolicy"] == "Never"  # without which there may be no podFailurePolicy
    assert manifest["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"


def test_devices_are_asked_for(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    pods = {name: job_of(printed(capsys, flags))["template"]["spec"] for name, flags in DEVICES.items()}
    limits = {name: pod["containers"][0].get("resources", {}).get("limits") for name, pod in pods.items()}
    assert limits == {"none": None, "gpu": {"nvidia.com/gpu": "8"}, "tpu": {"google.com/tpu": "4"}}
    selected = pods["tpu"]["nodeSelector"]
    assert selected["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_a_workdir_in_a_bucket_needs_no_claim(capsys, monkeypatch):
    monkeypatch.setitem(bucket_clients.CLIENTS, "gs", ("json", "gcs"))  # installed everywhere
    monkeypatch.chdir(ROOT)
    train = TRAIN.replace("/runs/", "gs://my-bucket/")
    assert cli.run_command(shlex.split(f"launch kubernetes --image=i --hosts=2 --dry_run -- {train}")) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert JobSet.from_dict(found).to_dict() == found
    pod = job_of(found)["template"]["spec"]
    assert "volumes" not in pod and "volumeMounts" not in pod["containers"][0]
    assert "--workdir=gs://my-bucket/p_uncond=0.1" in pod["containers"][0]["command"]
    assert found["metadata"]["name"] == "p-uncond-0-1"
