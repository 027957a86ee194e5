"""The demo: a real network, trained on real data in seconds, through the main job."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe import workflow
from edgepipe.errors import MissingExtra
from edgepipe.events import Emit, silent, stage
from edgepipe.files import write_whole
from edgepipe.job import Effort, Job, Place

if TYPE_CHECKING:
    from edgepipe.store import Run

EPOCHS = 15
TRAINING_SAMPLES = 1200
BATCH = 64
SEED = 0
NOT_WRITTEN = {
    "what": "the demo's files cannot be written",
    "remedy": "name a folder that you may write to: edgepipe demo --folder FOLDER",
}


def run_demo(folder: Path, *, emit: Emit = silent, command: str = "") -> Run:
    """Trains the network on scikit-learn's digits and deploys it on the embedded device.

    `folder` then holds net.py, digits.pt and digits.npz, as a user would have them, and the run.

    Args:
        folder: Where the demo's files go; created if absent.
        emit: Where progress goes.
        command: As in `edgepipe.deploy`.

    Returns:
        The run, as `edgepipe.deploy` gives it.

    Raises:
        MissingExtra: If torch or scikit-learn is not installed.
        OutputError: If the folder cannot be written.
    """
    for package in ("torch", "sklearn", "asyncssh"):
        if find_spec(package) is None:
            raise MissingExtra(f"the demo needs {package}", remedy="pip install 'edgepipe[demo]'")
    model, weights, data = folder / "net.py", folder / "digits.pt", folder / "digits.npz"
    write_whole(model, Path(__file__).with_name("net.py").read_bytes(), **NOT_WRITTEN)
    _train(weights, data, emit)
    job = Job(model=f"{model}:build", weights=weights, data=data, target="x86", seed=SEED)
    effort = Effort(min_duration_s=2.0)
    return workflow.deploy(
        job, Place(emulate=True), effort, store=folder / "runs", emit=emit, command=command
    )


def _train(weights: Path, data: Path, emit: Emit) -> None:
    """Writes the trained state_dict, and the samples that training never saw."""
    with stage(emit, "load PyTorch and scikit-learn"):  # seconds of silence otherwise
        import numpy as np
        import torch
        from sklearn.datasets import load_digits

        from edgepipe.demo.net import build

    digits: Any = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]  # 4-bit grey levels
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    train, held_out = order[:TRAINING_SAMPLES], order[TRAINING_SAMPLES:]
    samples, state = io.BytesIO(), io.BytesIO()
    np.savez(samples, x=images[held_out], y=labels[held_out])
    write_whole(data, samples.getvalue(), **NOT_WRITTEN)

    torch.manual_seed(SEED)
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-2)
    batches = TRAINING_SAMPLES // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * batches)
    x, y = torch.from_numpy(images[train]), torch.from_numpy(labels[train])
    with stage(emit, "train on scikit-learn's digits", EPOCHS) as training:
        for epoch in range(EPOCHS):
            for batch in torch.randperm(TRAINING_SAMPLES)[: batches * BATCH].reshape(batches, BATCH):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
            training.advance(epoch + 1)
        network.eval()
        with torch.no_grad():
            guesses = network(torch.from_numpy(images[held_out])).argmax(dim=1).numpy()
        training.detail = (
            f"{100 * np.mean(guesses == labels[held_out]):.1f} % on {len(held_out)} held-out images"
        )
    torch.save(network.state_dict(), state)
    write_whole(weights, state.getvalue(), **NOT_WRITTEN)
