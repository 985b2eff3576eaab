"""The VQ-VAE: a loop as a short row of symbols from a dictionary, and back.

Source: Han, Ihm and Lim 2021, arXiv:2111.07657, equation 2 and appendix table (d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from midiloop.common.configs import CodebookSize, Range, Share, Weight, Width
from midiloop.common.sampling import distribution
from midiloop.common.vq import Quantized, ResidualVectorQuantizer
from midiloop.models.layers import (
    ConvBlock,
    Loss,
    Padding,
    ResBlock,
    RollConfig,
    RollModel,
    binary_nats,
    conv,
    initialise,
)


@dataclass(frozen=True)
class VQVAEConfig(RollConfig):
    """Sizes of a VQ-VAE. The defaults are the paper's, table (d).

    The table's third stride-2 convolution contradicts the shape (32, 16) that it gives for its
    output; the paper's text (t = 32, L = 16) is what stands here: two of them, then a plain one.

    Attributes:
        channels, embed_channels: of the blocks, and of the layer of kernel 1 next to the roll.
        latent_dim: L, length of a dictionary vector.
        codebook_size: K, vectors in a dictionary.
        halvings: convolutions of stride 2: the latent has 128 / 2^halvings steps.
        streams: ``joint``: one row of codes for everything; ``parts``: a stack of its own, and a
            row of codes, for the drums and for the bass.
        span: what convolutions run along. ``loop``: all 128 steps, zeros around them; ``bar``:
            each bar by itself, as a circular sequence. So equal bars have equal codes, and equal
            codes equal bars: a form in codes is exact in notes.
        bass: ``sigmoid``: each pitch by itself; ``softmax``: one pitch or none on each step.
        decay, commitment: of the dictionary's averages, and β of equation 2.
    """

    channels: Width = 32
    embed_channels: Width = 64
    latent_dim: Width = 16
    codebook_size: CodebookSize = 512
    halvings: Annotated[int, Range(0, 10)] = 2
    streams: Literal["joint", "parts"] = "joint"
    span: Literal["loop", "bar"] = "loop"
    bass: Literal["sigmoid", "softmax"] = "sigmoid"
    decay: Share = 0.99
    commitment: Weight = 0.25

    @property
    def code_steps(self) -> int:
        """T: codes of a stream."""
        return self.steps >> self.halvings

    @property
    def n_streams(self) -> int:
        """S: rows of codes."""
        return 1 if self.streams == "joint" else 2


class Stack(nn.Module):
    """Encoder, quantiser and decoder of one stream of columns, table (d)."""

    def __init__(self, columns: int, outputs: int, config: VQVAEConfig) -> None:
        super().__init__()
        padding: Padding = "zeros" if config.span == "loop" else "circular"
        c, e = config.channels, config.embed_channels
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for _ in range(config.halvings):
            down += [ConvBlock(c, c, 3, stride=2, padding=padding), ResBlock(c, padding=padding)]
            up += [nn.Upsample(scale_factor=2), ResBlock(c, padding=padding)]
        self.encoder = nn.Sequential(
            ConvBlock(columns, e, 1, padding=padding),
            ConvBlock(e, c, 1, padding=padding),  # (N, c, T)
            *down,  # (N, c, T / 2^halvings)
            conv(c, config.latent_dim, 3, padding=padding),
        )
        self.quantizer = ResidualVectorQuantizer(
            1, config.codebook_size, config.latent_dim, decay=config.decay
        )
        self.decoder = nn.Sequential(
            ConvBlock(config.latent_dim, c, 3, padding=padding),
            *up,  # (N, c, T)
            ConvBlock(c, e, 1, padding=padding),
            conv(e, outputs, 3, padding=padding),
        )


class VQVAE(RollModel):
    """Loops to codes (B, S, T) and back: S = 1 and T = 32 in the paper."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config: VQVAEConfig = config
        drums, pitches = config.drums, config.pitches
        span = config.steps if config.span == "loop" else config.steps // config.bars
        if span % 2**config.halvings:
            raise ValueError(f"{span} steps cannot be halved {config.halvings} times")
        silence = int(config.bass == "softmax")  # one more output: no pitch
        if config.streams == "joint":
            self.widths = [config.columns]
            outputs = [config.columns + silence]
        else:
            self.widths = [drums, pitches]
            outputs = [drums, pitches + silence]
        pairs = zip(self.widths, outputs, strict=True)
        self.stacks = nn.ModuleList(Stack(width, out, config) for width, out in pairs)
        initialise(self)

    def forward(self, rolls: Tensor) -> tuple[Tensor, list[Quantized]]:
        """Rolls (B, 128, 93) to logits (B, 128, 93 or 94) and what each stream's codes are."""
        quantized, logits = [], []
        for stack, columns in zip(self.stacks, torch.split(rolls, self.widths, 2), strict=True):
            assert isinstance(stack, Stack)
            latents = stack.encoder(self._spans(columns.mT.float()))  # (N, L, T)
            quantized.append(stack.quantizer(latents))
            logits.append(self._whole(stack.decoder(quantized[-1].latent), len(rolls)))
        return torch.cat(logits, 1).mT, quantized

    def encode(self, rolls: Tensor) -> Tensor:
        """Rolls (B, 128, 93) to codes int64 (B, S, T)."""
        codes = []
        for stack, columns in zip(self.stacks, torch.split(rolls, self.widths, 2), strict=True):
            assert isinstance(stack, Stack)
            latents = stack.encoder(self._spans(columns.mT.float()))
            codes.append(stack.quantizer(latents).codes.view(len(rolls), -1))
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, S, T) to logits (B, 128, 93 or 94); a span that repeats is decoded once."""
        logits = []
        for stack, rows in zip(self.stacks, torch.split(codes, 1, 1), strict=True):
            assert isinstance(stack, Stack)
            spans, which = torch.unique(self._spans(rows)[:, 0], dim=0, return_inverse=True)
            spans = spans[
                distribution(torch.arange(len(spans), device=spans.device), into=len(which))
            ]
            decoded = stack.decoder(stack.quantizer.lookup(spans[:, None]))
            logits.append(self._whole(decoded[which], len(codes)))
        return torch.cat(logits, 1).mT

    def rolls(self, logits: Tensor) -> Tensor:
        """Logits to bool rolls (B, 128, 93)."""
        drums = logits[..., : self.config.drums] >= 0
        bass = logits[..., self.config.drums :]
        if self.config.bass == "sigmoid":
            return torch.cat([drums, bass >= 0], 2)
        pitches = torch.arange(self.config.pitches, device=bass.device)
        return torch.cat([drums, bass.argmax(2, keepdim=True) == pitches], 2)

    @torch.no_grad()
    def reconstruct(self, rolls: Tensor) -> Tensor:
        """Rolls (B, 128, 93) through the codes and back: bool (B, 128, 93)."""
        return self.rolls(self(rolls)[0])

    def loss(self, rolls: Tensor, epoch: float) -> Loss:
        """Equation 2: nats a loop, and how far latent vectors are from the dictionary."""
        del epoch
        logits, quantized = self(rolls)
        nats = self._nats(logits, rolls)
        commitment = torch.stack([q.commitment for q in quantized]).sum()
        # Nats a step: a mean over all cells would leave the commitment nearly alone, and half the
        # error to learn.
        total = nats / self.config.steps + self.config.commitment * commitment
        return Loss(total, {"nats": nats.detach(), "commitment": commitment.detach()})

    def _nats(self, logits: Tensor, rolls: Tensor) -> Tensor:
        if self.config.bass == "sigmoid":
            return binary_nats(logits, rolls)
        drums = binary_nats(logits[..., : self.config.drums], rolls[..., : self.config.drums])
        bass = rolls[..., self.config.drums :]
        silent = ~bass.bool().any(2, keepdim=True)
        pitch = torch.cat([bass.bool(), silent], 2).byte().argmax(2)  # (B, 128)
        steps = F.cross_entropy(logits[..., self.config.drums :].mT.float(), pitch, reduction="sum")
        return drums + steps / len(rolls)

    def _spans(self, x: Tensor) -> Tensor:
        """(B, C, T) to what convolutions run along: itself, or (B · 8, C, T / 8)."""
        if self.config.span == "loop":
            return x
        return rearrange(x, "b c (bar t) -> (b bar) c t", bar=self.config.bars)

    def _whole(self, x: Tensor, n_loops: int) -> Tensor:
        """Undo `_spans`."""
        return rearrange(x, "(b bar) c t -> b c (bar t)", b=n_loops)
