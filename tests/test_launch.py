# SPDX-License-Identifier: Apache-2.0
"""The launch recipes, run against stand-ins for gcloud, srun, scontrol and kubectl that write down
how they were called."""

import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support.places import ROOT

LAUNCH = ROOT / "experiments" / "launch"
TOOLS = ("bash", "cat", "dirname", "gzip", "mktemp", "nohup", "rm", "setsid", "sleep", "tar",
         "touch", "uname")  # fmt: skip
AWKWARD = ["--config.data.path=/shared/my images", "--config.model.options=('a', \"$(b)\", `c`, &)"]


class Stage:
    """A small checkout with the scripts, and a PATH with nothing but some tools and stand-ins."""

    def __init__(self, folder):
        self.folder, self._log = folder, folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self._checkout = folder / "check out"
        shutil.copytree(LAUNCH, self._checkout / "experiments" / "launch")

    def stand_in(self, *names, body="", path=None):
        """Programs that write down their arguments and then run `body`."""
        for name in names:
            file = (path or self.bin) / name
            file.write_text(
                f"#!{self.bin}/bash\nprintf '%s\\0' {name} \"$@\" $'\\n' >>{self._log}\n{body}\n"
            )
            file.chmod(0o755)

    @property
    def calls(self):
        """All calls so far, as lists of words, and none from now on."""
        if not self._log.exists():
            return []
        text = self._log.read_text()
        self._log.unlink()
        return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

    def start(self, script, *arguments, **environment):
        return subprocess.Popen(
            ["bash", str(self._checkout / "experiments" / "launch" / script), *arguments],
            env={"PATH": str(self.bin), "TMPDIR": str(self.folder), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
        )  # fmt: skip

    def run(self, script, *arguments, code=0, **environment):
        """Standard output and error of a script."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        return out, err


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


# Slurm


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_GPUS_ON_NODE": "8",
       "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "5"}  # fmt: skip
STEP = ["srun", "--kill-on-bad-exit=0", "--gpu-bind=none", "mambaout", "train", "--config",
        "a b.py:x", "--workdir", "/shared/r 1", *AWKWARD, "--distributed"]  # fmt: skip
SHOW = ["scontrol", "show", "job", "--oneliner", "7"]


def slurm(stage, srun="", state="RUNNING", scontrol="", **options):
    stage.stand_in("srun", body=srun)
    stage.stand_in("mambaout")
    stage.stand_in("scontrol", body=f"echo 'JobId=7 JobState={state} Reason=None'\n{scontrol}")
    return stage.run("slurm.sbatch", "a b.py:x", "/shared/r 1", *AWKWARD, **{**JOB, **options})


def test_slurm_runs_a_process_for_each_gpu(stage):
    out, err = slurm(stage, srun='echo "cpus $SRUN_CPUS_PER_TASK"')
    assert (out, err) == ("cpus 5\n", "")
    assert stage.calls == [STEP]


def test_slurm_requeues_what_was_saved_at_sigterm(stage):
    slurm(stage, srun="exit 75", code=75)
    assert stage.calls == [STEP, SHOW, ["scontrol", "requeue", "7"]]


def test_slurm_hands_sigterm_on_and_waits_for_the_end(stage):
    ready = stage.folder / "ready"
    stage.stand_in("mambaout", "scontrol")
    stage.stand_in("srun", body=f"trap 'sleep 0.2; exit 75' TERM; touch {ready}\n"
                   "while :; do sleep 0.02; done")  # fmt: skip
    process = stage.start("slurm.sbatch", "a", "/w", **JOB)
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert stage.calls[1:] == [SHOW, ["scontrol", "requeue", "7"]]


def test_slurm_leaves_a_cancelled_job_alone(stage):
    _, err = slurm(stage, srun="exit 75", state="CANCELLED", code=75)
    assert stage.calls == [STEP, SHOW]
    assert err == "cancelled; the same sbatch again goes on from the last checkpoint\n"


@pytest.mark.parametrize("code", [1, 2, 70, 137])
def test_slurm_does_not_requeue_what_failed(stage, code):
    _, err = slurm(stage, srun=f"exit {code}", code=code)
    assert stage.calls == [STEP]
    assert err == (
        f"error: the run ended with exit code {code}, see above; when that is mended, the same "
        "sbatch again goes on from the last checkpoint\n"
    )


def test_slurm_says_where_requeueing_fails(stage):
    _, err = slurm(stage, srun="exit 75", scontrol='[ "$1" != requeue ]', code=1)
    assert err == "error: the job could not be requeued; the same sbatch again goes on\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["a"], JOB, "usage: sbatch [OPTIONS] slurm.sbatch CONFIG WORKDIR [SETTING …]"),
        (["a", "/w"], {}, "this is a job: sbatch "),
        (["a", "gs://b/c"], JOB, "gs://b/c is in a bucket, which is for runs of one process only"),
        (["a", "/w"], {**JOB, "SLURM_GPUS_ON_NODE": "4"},
         "4 GPUs and 8 processes on a node: give sbatch --ntasks-per-node=4"),
    ],
)  # fmt: skip
def test_slurm_refuses_what_cannot_run(stage, arguments, environment, words):
    stage.stand_in("srun", "scontrol", "mambaout")
    _, err = stage.run("slurm.sbatch", *arguments, code=2, **environment)
    assert err.startswith(f"error: {words}")
    assert stage.calls == []


def test_slurm_names_a_missing_program(stage):
    stage.stand_in("srun", "scontrol")
    _, err = stage.run("slurm.sbatch", "a", "/w", code=2, **JOB)
    assert re.fullmatch("error: there is no mambaout on .*; activate the environment .*\n", err)


# Cloud TPU


POD = ["--name", "pod", "--zone", "us-a", "--project", "my project"]
PLACE = ["--zone=us-a", "--project=my project"]
TPU = ["gcloud", "compute", "tpus", "tpu-vm"]
MADE = ["--accelerator", "v6e-16", "--version", "v2", "--spot"]
CREATE = [*TPU, "create", "pod", *PLACE, "--accelerator-type=v6e-16", "--version=v2", "--spot"]
DELETE = [*TPU, "delete", "pod", *PLACE, "--quiet"]
DESCRIBE = [*TPU, "describe", "pod", *PLACE, "--format=value(state)"]
TRAIN = ["--config", "a b.py:x", "--workdir", "/shared/r 1", "--", *AWKWARD]


def pod(stage, verb, *arguments, body="", **options):
    """The calls of gcloud."""
    stage.stand_in("gcloud", body=body)
    _, err = stage.run("tpu_pod.sh", verb, *POD, *arguments, **options)
    return stage.calls, err


def on_workers(call, which="all"):
    """The command of a call of ssh."""
    assert call[:-1] == [*TPU, "ssh", "pod", *PLACE, f"--worker={which}"]
    return call[-1].removeprefix("--command=")


def test_tpu_pod_is_created_and_deleted(stage):
    assert pod(stage, "create", *MADE)[0] == [CREATE]
    assert pod(stage, "create", *MADE[:-1])[0] == [CREATE[:-1]]
    assert pod(stage, "delete")[0] == [DELETE]


def test_tpu_pod_gets_this_checkout_without_its_data(stage):
    names = stage.folder / "names"
    for path in ("pyproject.toml", "data/runs/a", ".git/a", "tests/a", "runs/a", ".venv/a"):
        file = stage.folder / "check out" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (copy, install), _ = pod(stage, "install", "--setup", "mount 'a b'",
                             body=f'[ "$4" != scp ] || tar -tzf "$5" >{names}')  # fmt: skip
    archive = copy[5]
    assert copy == [*TPU, "scp", archive, "pod:", *PLACE, "--worker=all"]
    assert archive.endswith("/mambaout_jax.tar.gz")
    assert not Path(archive).parent.exists()
    listed = {name for name in names.read_text().splitlines() if not name.endswith("/")}
    scripts = {f"./experiments/launch/{path.name}" for path in LAUNCH.iterdir()}
    assert listed == {"./pyproject.toml", "./data/runs/a", *scripts}
    command = on_workers(install)
    assert command.startswith("set -e; mount 'a b'; mkdir -p mambaout_jax; tar ")
    assert "venv/bin/python -e 'mambaout_jax[tpu,data]'" in command


def alive(process):
    """Whether a process is there that has not ended, not even as one that nobody waits for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_tpu_pod_trains_by_one_command_that_a_worker_s_shell_reads_as_meant(stage):
    (call,), _ = pod(stage, "train", *TRAIN)
    home = stage.folder / "home"
    for folder in ("mambaout_jax", "venv/bin"):
        (home / folder).mkdir(parents=True)
    stage.stand_in("mambaout", path=home / "venv/bin", body="echo said; sleep 5")

    def worker(command, code):
        result = subprocess.run(
            ["bash", "-c", command], cwd=home, env={"PATH": str(stage.bin)}, timeout=20,
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == code
        return result.stderr

    assert worker(on_workers(call), 0) == ""  # at once, though the training lasts
    while not (home / "train.log").read_text():
        time.sleep(0.01)
    assert stage.calls == [["mambaout", *STEP[4:]]]
    assert worker(on_workers(call), 1) == "a training is under way here\n"
    (call,), _ = pod(stage, "stop")
    worker(on_workers(call), 0)
    training, deadline = int((home / "train.pid").read_text()), time.monotonic() + 20
    while alive(training) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(training)
    assert (home / "train.log").read_text() == "said\n"
    (home / "train.pid").unlink()
    worker(on_workers(call), 1)  # nothing to stop


def test_tpu_pod_follows_the_log_of_a_worker(stage):
    (call,), _ = pod(stage, "logs", "--worker", "3")
    assert on_workers(call, 3) == "tail -n 100 -F train.log"


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("echo READY", ["describe", "ssh"]),
        ("echo PREEMPTED", ["describe", "delete", "create", "scp", "ssh", "ssh"]),
        ("exit 1", ["describe", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_tpu_pod_resumes_with_what_is_missing(stage, state, verbs):
    calls, _ = pod(stage, "resume", *MADE, *TRAIN, body=f'[ "$4" != describe ] || {{ {state}; }}')
    assert [call[4] for call in calls] == verbs
    assert calls[0] == DESCRIBE
    (train,), _ = pod(stage, "train", *TRAIN)
    assert calls[-1] == train


@pytest.mark.parametrize(
    ("verb", "arguments", "fails", "words", "calls"),
    [
        ("create", MADE, "create", "creating pod failed, see above; where there is no capacity", 1),
        ("install", [], "scp", "copying to pod failed, see above; install again", 1),
        ("install", [], "ssh", "installing on pod failed, see above; ", 2),
        ("train", TRAIN, "ssh", "starting on pod failed, see above; stop what still runs", 1),
        ("resume", [*MADE, *TRAIN], "create", "creating pod failed", 2),
        ("logs", [], "ssh", "reading the log failed, see above; train first", 1),
        ("stop", [], "ssh", "stopping failed, see above; logs tells whether", 1),
        ("delete", [], "delete", "deleting pod failed, see above; delete again", 1),
    ],
)
def test_tpu_pod_stops_where_gcloud_fails(stage, verb, arguments, fails, words, calls):
    made, err = pod(stage, verb, *arguments, body=f'[ "$4" != {fails} ]', code=1)
    assert err.startswith(f"error: {words}")
    assert len(made) == calls


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["begin"], "there is no verb begin; there are create, "),
        (["create", "--name", "a"], "create needs --zone; tpu_pod.sh --help shows what else"),
        (["create", *POD], "create needs --accelerator"),
        (["create", *POD, "--spott"], "there is no argument --spott; settings such as "),
        (["train", *POD, "--config"], "--config needs a value"),
        (["train", *POD, "--config", "a", "--workdir", "gs://b/c"], "gs://b/c is in a bucket, "),
        (["train", *POD, "--config", "a", "--workdir", "runs/a"], "--workdir=runs/a is relative"),
    ],
)
def test_tpu_pod_refuses_what_cannot_run(stage, arguments, words):
    stage.stand_in("gcloud")
    _, err = stage.run("tpu_pod.sh", *arguments, code=2)
    assert err.startswith(f"error: {words}")
    assert stage.calls == []


def test_tpu_pod_needs_gcloud(stage):
    _, err = stage.run("tpu_pod.sh", "delete", *POD, code=2)
    assert err.startswith("error: there is no gcloud here; install it from ")


# GKE


RUN = ["--name", "tiny", "--image", "reg/m:1", "--claim", "shared", "--nodes", "4", "--config",
       "a b.py:x", "--workdir", "/shared/r 1"]  # fmt: skip
SLICE = ["tpu", *RUN, "--accelerator", "tpu-v6e-slice", "--topology", "4x4"]
GPUS = ["gpu", *RUN, "--accelerator", "nvidia-h100-80gb"]


def jobset(stage, *arguments):
    """What kubectl was given to apply."""
    stage.stand_in("kubectl", body="cat")
    out, _ = stage.run("jobset.sh", *arguments)
    return yaml.safe_load(out)


def job_of(applied):
    (job,) = applied["spec"]["replicatedJobs"]
    return job["template"]["spec"]


@pytest.mark.parametrize(
    ("arguments", "joined", "limits", "selector", "volumes"),
    [
        (SLICE, "--distributed", {"google.com/tpu": 4},
         {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
          "cloud.google.com/gke-tpu-topology": "4x4"}, {"shared": "/shared"}),
        (GPUS, "--distributed=tiny-train-0-0.tiny:1234,4,$(INDEX)", {"nvidia.com/gpu": 8},
         {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
         {"shared": "/shared", "memory": "/dev/shm"}),
    ],
)  # fmt: skip
def test_jobset_starts_the_command_on_every_machine(
    stage, arguments, joined, limits, selector, volumes
):
    applied = jobset(stage, *arguments, "--", *AWKWARD)
    assert stage.calls == [["kubectl", "apply", "-f", "-"]]
    assert (applied["kind"], applied["metadata"]["name"]) == ("JobSet", "tiny")
    job = job_of(applied)
    assert (job["completionMode"], job["parallelism"], job["completions"]) == ("Indexed", 4, 4)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == selector
    (container,) = pod["containers"]
    assert container["image"] == "reg/m:1"
    assert container["command"] == ["mambaout"]
    escaped = [AWKWARD[0], AWKWARD[1].replace("$(", "$$(")]  # as Kubernetes reads it back
    assert container["args"] == [*STEP[4:-3], *escaped, joined]
    assert container["resources"] == {"limits": limits}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == volumes
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    if "$(INDEX)" in joined:
        (index,) = container["env"]
        assert index["name"] == "INDEX"


@pytest.mark.parametrize("arguments", [SLICE, GPUS])
def test_jobset_restarts_all_but_after_a_wrong_command(stage, arguments):
    applied = jobset(stage, *arguments, "--restarts", "3")
    assert applied["spec"]["failurePolicy"] == {
        "maxRestarts": 3,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    job = job_of(applied)
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [2, 70]},
    }


def test_jobset_may_go_to_another_cluster(stage):
    jobset(stage, *GPUS, "--context", "my cluster", "--namespace", "vision")
    assert stage.calls == [
        ["kubectl", "--context=my cluster", "--namespace=vision", "apply", "-f", "-"]
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cpu"], "there is no kind cpu; there are tpu and gpu"),
        (GPUS[:-2], "--accelerator is missing; jobset.sh --help shows what is needed"),
        ([*GPUS, "--nodes", "two"], "--nodes=two is not a whole number"),
        ([*GPUS, "--name", "My_run"], "--name=My_run: small letters, digits and - only"),
        ([*GPUS, "--workdir", "gs://b/c"], "--workdir=gs://b/c is not below /shared, "),
        ([*GPUS, "--topology", "2x2"], "--topology is for tpu only"),
        ([*GPUS, "--", "a\nb"], "a\nb: an argument must be one line"),
        (SLICE[:-2], "--topology= is not that of a slice, such as 4x4 or 2x2x4"),
        ([*SLICE, "--topology", "2x2x2"], "--topology=2x2x2 are 8 chips, but 4 machines with 4 "),
        ([*SLICE, "--chip"], "there is no argument --chip; settings such as "),
    ],
)
def test_jobset_refuses_what_cannot_run(stage, arguments, words):
    stage.stand_in("kubectl")
    _, err = stage.run("jobset.sh", *arguments, code=2)
    assert err.startswith(f"error: {words}")
    assert stage.calls == []


def test_jobset_stops_where_kubectl_fails_or_is_missing(stage):
    _, err = stage.run("jobset.sh", *GPUS, code=2)
    assert err.startswith("error: there is no kubectl here; install it, and get the credentials ")
    stage.stand_in("kubectl", body="cat >/dev/null; echo 'field is immutable' >&2; exit 1")
    _, err = stage.run("jobset.sh", *GPUS, code=1)
    first, second = err.splitlines()
    assert first == "field is immutable"
    assert second.startswith("error: kubectl could not apply the JobSet, see above; where tiny has "
                             "ended, kubectl delete jobset tiny first")  # fmt: skip


# What the README says


README = (LAUNCH / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_commands_of_the_readme_are_understood(stage, command):
    scripts = [n for n, word in enumerate(command) if word.startswith("experiments/launch/")]
    if not scripts:
        assert command[0] == "kubectl"
        return
    script, *arguments = command[scripts[0] :]
    dry = 0 if script.endswith(".sbatch") else 1
    arguments.insert(dry, "--dry-run")
    out, err = stage.run(script.removeprefix("experiments/launch/"), *arguments)
    assert err == ""
    assert any(word in out for word in ("srun ", "gcloud ", "kind: JobSet\n"))
    for config in re.findall(r"experiments/\w+/\w+\.py", out):
        assert (ROOT / config).is_file()


def test_help_tells_the_arguments(stage):
    for script in ("tpu_pod.sh", "jobset.sh"):
        out, _ = stage.run(script, "--help")
        assert out.startswith(f"usage: {script} ")
        assert out == stage.run(script)[0]
