"""The files for clusters are valid, and name the workers as the commands read them."""

import json
import os
import pathlib
import stat
import subprocess

import jsonschema
import pytest
import yaml

from auto_deeplab_tf import config
from auto_deeplab_tf.training import cluster
from auto_deeplab_tf.training.cluster import Workers

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SCHEMA = json.loads((ROOT / "tests" / "jobset_schema.json").read_text())
# Stands for `python`: tells with what it was started.
PYTHON = """#!/bin/bash
printf '%s\\n%s\\n' "${TF_CONFIG:-}" "$*" >> "$STARTED"
exit "${EXIT:-0}"
"""
PROGRAMS = {
    "python": PYTHON,
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then printf "node1\\nnode2\\n"; '
    'else echo "$*" >> "$STARTED"; fi\n',
    # One task on each of two nodes; its options come before the command.
    "srun": '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\n'
    "for SLURM_PROCID in ${TASKS:-0 1}; do export SLURM_PROCID; "
    '"$@" || code=$?; done; exit ${code:-0}\n',
}


def jobset():
    return yaml.safe_load((DEPLOY / "jobset.yaml").read_text())


@pytest.fixture
def shell(tmp_path):
    """Runs a command with stand-ins for Slurm and Python; returns what each Python was given."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)

    def run(*command, code=0, **variables):
        started = tmp_path / "started"
        started.write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "STARTED": str(started), "EXIT": str(code)}
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return started.read_text().splitlines()

    return run


def checked(arguments, config_class):
    """The options of a command line as the command reads them, its flag file included."""
    from auto_deeplab_tf import cli

    return cli.parse(config_class, arguments.split()[2:])


def test_the_job_set_is_valid_and_its_names_fit():
    manifest = jobset()
    jsonschema.validate(manifest, SCHEMA)
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completions"] == spec["parallelism"] == int(container["env"][0]["value"])
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("field", ["maxRestart", "restartPolicy"])
def test_a_field_that_job_sets_do_not_have_is_refused(field):
    manifest = jobset()
    manifest["spec"]["failurePolicy"][field] = 3
    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate(manifest, SCHEMA)


def test_pods_of_the_job_set_are_the_workers_of_one_cluster(shell, monkeypatch):
    monkeypatch.chdir(ROOT)
    manifest = jobset()
    (job,) = manifest["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    for index in range(2):
        variable, arguments = shell(
            *container["command"], *container["args"], WORKERS="2", JOB_COMPLETION_INDEX=str(index)
        )
        assert cluster.from_environment({"TF_CONFIG": variable}) == Workers(index, 2)
        hosts = json.loads(variable)["cluster"]["worker"]
        # NAME-JOB-REPLICA-POD.SUBDOMAIN, as JobSet names its pods.
        name = f"{manifest['metadata']['name']}-{job['name']}-0"
        subdomain = manifest["spec"]["network"]["subdomain"]
        port = container["ports"][0]["containerPort"]
        assert hosts == [f"{name}-{pod}.{subdomain}:{port}" for pod in range(2)]
        options = checked(arguments, config.SearchConfig)
        assert options.distribution_strategy == cluster.MULTI_WORKER
        assert options.run_dir.startswith(container["volumeMounts"][0]["mountPath"])


SLURM = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize("code", [0, 1, 143])
def test_slurm_starts_a_worker_on_every_node(shell, code):
    arguments = ["--run_dir=/shared/a b", "--seed=3"]
    lines = shell(str(DEPLOY / "slurm_search.sh"), *arguments, code=code, **SLURM)
    for index in range(2):
        assert cluster.from_environment({"TF_CONFIG": lines[2 * index]}) == Workers(index, 2)
        hosts = json.loads(lines[2 * index])["cluster"]["worker"]
        assert hosts == ["node1:2222", "node2:2222"]
        command = "-m auto_deeplab_tf.search --distribution_strategy=multi_worker_mirrored"
        assert lines[2 * index + 1] == f"{command} {' '.join(arguments)}"
    # What was told to end resumes; an error does not.
    assert lines[4:] == (["requeue 7"] if code == 143 else [])


def test_a_slurm_array_gives_every_seed_a_run_of_its_own(shell):
    flags = {"SLURM_ARRAY_TASK_ID": "4", "TASKS": "0", "RUNS": "/shared"}
    _, arguments = shell(str(DEPLOY / "slurm_seeds.sh"), "--epochs=40", **flags)
    options = checked(arguments, config.SearchConfig)
    assert (options.seed, options.run_dir, options.epochs) == (4, "/shared/search-4", 40)
