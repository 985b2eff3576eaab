"""The vector quantiser: equal to another's, and the same in one process as in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from midiloop.common.vq import ResidualVectorQuantizer
from torchrun import run_together

SIZE, DIM, DECAY = 16, 4, 0.9
PLAIN: dict[str, Any] = {"decay": DECAY, "rare": 0.0}  # no vector is so rare that it starts anew


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(8)
    torch.set_num_threads(1)


def latents(n: int = 6, steps: int = 40) -> Tensor:
    return torch.randn(n, DIM, steps)


def reference(made: ResidualVectorQuantizer) -> Any:
    """The quantisers of vector-quantize-pytorch with the same vectors, one after the other."""
    package = pytest.importorskip("vector_quantize_pytorch")
    others = package.ResidualVQ(
        dim=DIM, num_quantizers=len(made.vectors), codebook_size=SIZE, decay=DECAY, eps=0.0,
        threshold_ema_dead_code=0, commitment_weight=1.0, rotation_trick=False,
    )  # fmt: skip
    for book, layer in enumerate(others.layers):
        codebook = layer._codebook
        codebook.embed.copy_(made.vectors[book : book + 1])
        codebook.cluster_size.copy_(made.counts[book : book + 1])
        codebook.embed_avg.copy_((made.counts[..., None] * made.vectors)[book : book + 1])
    return others


def filled(codebooks: int) -> ResidualVectorQuantizer:
    """Vectors that each are the average of some rows."""
    made = ResidualVectorQuantizer(codebooks, SIZE, DIM, **PLAIN)
    made.counts.uniform_(1, 5)
    return made


@pytest.mark.parametrize("codebooks", [1, 3])
def test_codes_and_latents_are_those_of_another_quantiser(codebooks: int) -> None:
    made = filled(codebooks).eval()
    z = latents()
    quantized, indices, _ = reference(made).eval()(z.mT)
    found = made(z)
    assert torch.equal(found.codes, indices.permute(0, 2, 1))
    torch.testing.assert_close(found.latent, quantized.mT)
    torch.testing.assert_close(made.lookup(found.codes), quantized.mT)


def test_commitment_and_gradient_are_those_of_another_quantiser() -> None:
    made, gradients = filled(1).eval(), list[Tensor]()
    z, towards = latents(), torch.randn(6, DIM, 40)
    for source in (z.clone().requires_grad_(), z.clone().requires_grad_()):
        if not gradients:
            found = made(source)
            latent, commitment = found.latent, found.commitment
        else:
            latent, _, losses = reference(made).train()(source.mT, freeze_codebook=True)
            torch.testing.assert_close(losses.sum(), commitment)
            latent, commitment = latent.mT, losses.sum()
        (gradient,) = torch.autograd.grad((latent * towards).sum() + 3 * commitment, source)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_vectors_follow_their_rows_as_those_of_another_quantiser() -> None:
    made = filled(1).train()
    other = reference(made).train()
    for _ in range(20):
        z = latents()
        codes = other(z.mT)[1]
        assert torch.equal(made(z).codes, codes.permute(0, 2, 1))
    codebook = other.layers[0]._codebook
    torch.testing.assert_close(made.vectors, codebook.embed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.counts, codebook.cluster_size, rtol=1e-4, atol=1e-5)


def test_the_first_rows_become_the_vectors() -> None:
    rows = torch.randn(SIZE, DIM)
    z = rows[torch.randint(SIZE, (50,))].T[None]
    for rare in (None, 0.5):
        made = ResidualVectorQuantizer(1, SIZE, DIM, decay=0.95, rare=rare).train()
        made(z)
        distance = (made.vectors[0][:, None] - rows).square().sum(2).amin(1)
        assert distance[made.counts[0] == (1.0 if rare is None else 50 / SIZE)].max() == 0


TOGETHER = """
import sys
from pathlib import Path

import torch
from tests.midiloop.common import test_vq
from midiloop.common import devices

with devices.processes(torch.device("cpu")):
    made, batches = test_vq.begun()
    for z in batches:
        made(z[devices.rank() :: devices.world()])
    torch.save(made.state_dict(), Path(sys.argv[1]) / f"{devices.rank()}.pt")
"""


def begun() -> tuple[ResidualVectorQuantizer, list[Tensor]]:
    """A quantiser and what it is to see; some of its vectors are rare from the start."""
    torch.manual_seed(3)
    made = ResidualVectorQuantizer(2, SIZE, DIM, decay=DECAY, rare=0.3).train()
    made.counts.uniform_(10, 20)
    return made, [latents() for _ in range(5)]


def test_two_processes_have_the_codebooks_of_one(tmp_path: Path) -> None:
    run_together(TOGETHER, tmp_path, timeout_s=120)
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    alone, batches = begun()
    for z in batches:
        alone(z)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
