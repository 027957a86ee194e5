"""What a run records of how it came about."""

from pathlib import Path
from unittest import mock

import msgspec
import numpy as np

import edgepipe
from edgepipe.bundle import read_bundle
from edgepipe.data import digest_rows
from edgepipe.errors import DeviceRuntimeMissing
from edgepipe.job import Effort, Place
from edgepipe.store import Run
from edgepipe.workflow import deployment

QUICK = ("--duration", "0.1", "--min-runs", "64")
MINE = 'extends = "x86"\ntitle = "Mine"\n'


def bench(bundle, store):
    return edgepipe.workflow.bench(bundle, Place(emulate=True), Effort(min_duration_s=0.1), store=store)


def test_a_scripts_own_arguments_are_not_recorded(bundle, user):
    store = user.folder / "runs"
    with mock.patch("sys.argv", ["nightly.py", "--api-token", "s3cr3t"]):
        run = bench(bundle, store)
    assert run.command == ""
    written = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert not [each for each in written if b"s3cr3t" in each]


def test_the_command_line_records_what_was_typed(bundle, user):
    typed = ("bench", "bundle", "--emulate", *QUICK, "--store", "my runs", "--json")
    run = msgspec.convert(user.ok(*typed).json, Run)
    assert (
        run.command == "edgepipe bench bundle --emulate --duration 0.1 --min-runs 64 --store 'my runs' --json"
    )


def test_bench_records_the_target_that_it_measured_for(bundle, user):
    (user.folder / "mine.toml").write_text(MINE)
    run = msgspec.convert(
        user.ok("bench", "bundle", "--target", "mine.toml", "--emulate", *QUICK, "--json").json, Run
    )
    assert run.target == "mine"
    assert "-mine-" in run.id


def test_bench_asks_whether_the_device_has_a_runtime_before_it_pushes(bundle, user, told):
    with (
        mock.patch("edgepipe.workflow.measure.installed_runtimes", return_value=()),
        mock.patch.object(deployment, "measure_bundle") as measured,
    ):
        outcome = user.run("bench", "bundle", "--emulate", *QUICK)
    told(outcome, DeviceRuntimeMissing, "no inference runtime", "install")
    measured.assert_not_called()
    assert not Path(user.folder / "runs").is_dir() or not list((user.folder / "runs").iterdir())


def test_evaluate_leaves_out_what_the_bundle_was_calibrated_on(bundle, user, sources):
    manifest = read_bundle(bundle).manifest
    assert len(set(manifest.calibration.sample_digests)) == manifest.calibration.samples == 24
    outcome = user.ok("evaluate", "bundle", "--data", sources / "val.npz", "--json")
    assert outcome.json["reference"]["samples"] == 72
    assert "left out 24 of 96 samples" in outcome.stderr
    assert all(not each["unfit"] for each in outcome.json["artifacts"].values())


def test_evaluating_on_calibration_samples_alone_is_branded(bundle, user, sources):
    known = set(read_bundle(bundle).manifest.calibration.sample_digests)
    with np.load(sources / "val.npz") as data:
        x, y = data["x"], data["y"]
    seen = [row for row, digest in enumerate(digest_rows(x)) if digest in known][:5]
    np.savez(user.folder / "seen.npz", x=x[seen], y=y[seen])
    judged = user.ok("evaluate", "bundle", "--data", "seen.npz", "--json").json
    assert judged["reference"]["samples"] == 5
    assert {tuple(each["unfit"]) for each in judged["artifacts"].values()} == {
        ("evaluated on the calibration samples",)
    }
