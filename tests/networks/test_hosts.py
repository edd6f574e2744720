"""Two hosts with two devices each do what one process does: on loopback, on virtual devices of a CPU, on JAX."""

import json
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scripts
from conftest import ROOT
from noise import require_equal

from landmarks.networks import hosts
from landmarks.running import apart
from landmarks.running.command import InputError, Stopped
from landmarks.running.recipe import load

# A host's part in each run, or alone all of it: so many rounds, in each of which host 0 sees the first 32 photos in its
# own order and host 1 the others. One process gets them in the order in which the batches of both have them.
PROGRAM = """
import json, sys
from landmarks.running import command
command.prepare_backend()
import noise, numpy as np, tiny
from landmarks.networks import devices, hosts
from landmarks.running.recipe import load
from landmarks.training.run import begin_alike
from landmarks.training.trainer import Trainer

place, runs = sys.argv[1], json.loads(sys.argv[2])
if place:
    hosts.join(place)

def of_round(number):
    halves = noise.ids[:32], noise.ids[32:]
    shares = [[half[i] for i in np.random.default_rng(number).permutation(32)] for half in halves]
    if hosts.count > 1:
        return shares[hosts.number]
    return [one for i in range(0, 32, 8) for share in shares for one in share[i : i + 8]]

for rounds, *arguments in runs:
    recipe = load(arguments)
    run = recipe.run
    if hosts.number:
        run = run.model_copy(update={"work": run.work / "hosts/1"})
    run.work.mkdir(exist_ok=True, parents=True)
    devices.share("all" if place else "1", [recipe.divisible()])
    given = run, recipe.model, recipe.training, noise.classes, 6
    if place:
        begin_alike(*given)
    trainer = Trainer(*given, batches=noise.Batches)
    out, first = run.work / f"{len(trainer.history)}.npz", noise.weights(trainer) if trainer.history else {}
    for number in range(len(trainer.history), len(trainer.history) + rounds):
        row = trainer.mini_epoch(noise.Shard, of_round(number))
        trainer.finish_mini_epoch({**row, "mini_epoch": 2 * number + 2})  # so far has one process come too
    noise.save(out, trainer, first)
if place:
    hosts.leave()
"""
SETTINGS = [
    "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=0.8", "--dropout=0.3", "--batch-size=16",
    "--epochs=1", "--validation-shards=0", "--embedding-size=8", "--learning-rate=0.01", "--schedule=steps",
    "--optimizer=sgd", "--loss=arcface", "--head-parts=4", *scripts.PLAIN,
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def start(program: str, *arguments: str, devices: int = 2) -> subprocess.Popen:
    environment = scripts.jax(devices) | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", program, *arguments]  # not by scripts.py, which imports TensorFlow first
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of all runs: one of two hosts goes on alone, another one goes on as two."""
    if find_spec("jax") is None:
        pytest.skip("pip install jax")
    folder = tmp_path_factory.mktemp("hosts")

    def runs(*of: tuple[int, str, tuple[str, ...]]) -> str:
        return json.dumps([[rounds, f"--work={folder / name}", *SETTINGS, *more] for rounds, name, more in of])

    sampled = "--sampled-classes=0.5", "--class-weights"
    alone = (3, "alone", ()), (1, "shared", ()), (2, "sampled-alone", sampled)
    shared, address = (
        ((2, "shared", ()), (1, "sampled", sampled), (1, "sampled", sampled)),
        f"127.0.0.1:{free_port()},2",
    )
    for places, given in (([f"{address},0", f"{address},1"], runs(*shared)), ([""], runs(*alone))):
        for process in [start(PROGRAM, place, given) for place in places]:
            _, said = process.communicate(timeout=600)
            assert process.returncode == 0, said[-3000:]
    return folder


def test_one_process_goes_on_with_what_two_hosts_began(trained):
    two, one = (np.load(trained / "shared" / f"{done}.npz") for done in (0, 2))
    for name in [name.removeprefix("last ") for name in two if name.startswith("last ")]:
        np.testing.assert_array_equal(one[f"first {name}"], two[f"last {name}"], err_msg=name)
    require_equal(one, np.load(trained / "alone" / "0.npz"))


def test_sampled_classes_and_weights_are_those_of_one_process(trained):
    require_equal(np.load(trained / "sampled" / "1.npz"), np.load(trained / "sampled-alone" / "0.npz"))


def test_each_device_of_both_hosts_holds_its_classes_alone(trained):
    found = np.load(trained / "shared" / "0.npz")
    of_head = [tuple(found[name]) for name in found if name.startswith("held ") and "parts" in name]
    assert of_head.count((8, 3, 64 // 4)) == 2  # the centres of 63 landmarks, filled up, and their momentum


def test_both_hosts_say_the_same_of_photos(trained):
    first, other = (np.load(trained / "shared" / own / "0.npz") for own in ("", "hosts/1"))
    np.testing.assert_array_equal(first["embedding"], other["embedding"])


@pytest.fixture
def two(monkeypatch):
    """As if another host had joined."""
    monkeypatch.setattr(hosts, "count", 2)


@pytest.mark.parametrize(
    ("step", "asked", "ends"), [(0, [0, 1], True), (16, [1, 0], True), (16, [0, 0], False), (3, [1, 1], False)]
)
def test_all_hosts_end_before_the_same_step(two, monkeypatch, step, asked, ends):
    monkeypatch.setattr(hosts, "of_all", lambda _: np.array(asked))
    if asked[0]:
        monkeypatch.setattr(apart, "asked", type(apart.asked)())
        apart.asked.set()
    if ends:
        with pytest.raises(Stopped):
            hosts.check_stop(step)
    else:
        hosts.check_stop(step)


def test_host_0_says_when_a_checkpoint_is_due(two, monkeypatch):
    monkeypatch.setattr(hosts, "of_all", lambda _: np.array([0, 1]))
    assert not hosts.first_says(16, True)
    monkeypatch.setattr(hosts, "of_all", lambda _: np.array([1, 0]))
    assert hosts.first_says(16, False) and not hosts.first_says(17, True)


@pytest.mark.parametrize("mine", [{"a": 1, "b": [2]}, {"a": 1, "b": [3]}])
def test_hosts_that_differ_are_named(two, monkeypatch, mine):
    first = {"a": 1, "b": [2]}
    answers = iter([np.array([len(json.dumps(first))]), np.frombuffer(json.dumps(first).encode(), "uint8")])
    monkeypatch.setattr(hosts, "told", lambda _: next(answers))
    monkeypatch.setattr(hosts, "of_all", lambda differ: np.array([0, 1]))
    monkeypatch.setattr(hosts, "number", 1)
    with pytest.raises(
        InputError, match="host 1 has other settings than host 0" + (": b = " if mine != first else ",")
    ):
        hosts.require_alike("settings", mine)


def test_other_back_ends_are_told_to_take_jax(monkeypatch):
    monkeypatch.setattr(hosts.keras.backend, "backend", lambda: "torch")
    with pytest.raises(InputError, match="--hosts auto needs JAX.*KERAS_BACKEND=jax"):
        hosts.join("auto")


@pytest.mark.parametrize(
    "value", ["2", "host,2,0", "host:0,2,0", "host:99999,2,0", "host:1,2,2", "host:1,0,0", "a b:1,2,0"]
)
def test_no_place_of_a_host(tmp_path, value):
    with pytest.raises(InputError, match="--hosts: "):
        load([f"--work={tmp_path}", f"--hosts={value}"])


@pytest.mark.parametrize("setting", ["--loss=triplet", "--bottleneck-epochs=1"])
def test_what_several_hosts_do_not_train(tmp_path, tiny_mirror, setting):
    with pytest.raises(InputError, match="several hosts train by"):
        load([f"--work={tmp_path}", f"--mirror={tiny_mirror}", "--recognizer=neighbours", setting, "--hosts=auto"])


def test_an_address_that_cannot_be_is_told_at_once(monkeypatch):
    monkeypatch.setattr(hosts.keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="no.such.host.invalid is no address of a host"):
        hosts.join("no.such.host.invalid:1234,2,1")
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be listened at"):
            hosts.join(f"127.0.0.1:{port},2,0")


@pytest.mark.parametrize("number", [0, 1])
def test_a_host_that_waits_in_vain_ends(monkeypatch, number):
    pytest.importorskip("jax", reason="pip install jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(apart.Died, match="JAX distributed service"):
        apart.run(hosts.join, f"127.0.0.1:{free_port()},2,{number}", 3)


def test_without_a_cluster_nobody_tells_where_the_hosts_are(monkeypatch, capfd):
    pytest.importorskip("jax", reason="pip install jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(SystemExit):
        apart.run(hosts.join, "auto")
    assert capfd.readouterr().err.startswith("error: --hosts auto: neither Slurm nor Open MPI nor a TPU pod")
