"""Layers on a circle commute with rotation, and on a line they are PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioloop.nn.attention import (
    BLOCK,
    Attention,
    attend,
    explicit_attention,
    local_attention,
    local_mask,
    rotary,
)
from audioloop.nn.circular import Conv, Frames, OverlapAdd, lapped_transform, pad

HOP = 8
LENGTHS = (1, 2, 3, 5, 24)  # places; the first are shorter than what a layer reaches
WINDOWS = (HOP, 2 * HOP, 4 * HOP, 10 * HOP, 3 * HOP - 2)
KERNELS = (1, 3, 7, 15)
CONTEXT = 16  # places, more than any layer here reaches


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(8)


def convs() -> list[Conv]:
    return [Conv(6, 4, length) for length in KERNELS] + [Conv(6, 6, 7, groups=6)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def middle(layer: nn.Module, x: Tensor) -> Tensor:
    """One round of a layer's result, amid enough rounds of a line."""
    places = x.shape[-1] // HOP if isinstance(layer, Frames) else x.shape[-1]
    aside = -(-CONTEXT // places)
    rounds: Tensor = layer(x.repeat(1, 1, 2 * aside + 1), circular=False)
    return rounds.chunk(2 * aside + 1, -1)[aside]


# What lies beyond the ends.


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_circular_sequence_goes_on_as_it_begins_however_often_round(n: int) -> None:
    x = torch.randn(2, 3, n)
    for left, right in [(0, 0), (1, 0), (0, 1), (n, n), (n - 1, n + 1), (3 * n + 2, 5 * n + 1)]:
        expected = [x[..., place % n] for place in range(-left, n + right)]
        assert torch.equal(pad(x, left, right, circular=True), torch.stack(expected, -1))


def test_a_line_goes_on_in_zeros() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(pad(x, 5, 1, circular=False), F.pad(x, (5, 1)))


# Rotation.


@pytest.mark.parametrize("n", LENGTHS)
def test_a_convolution_commutes_with_rotation(n: int) -> None:
    x = torch.randn(2, 6, n)
    for conv in convs():
        for by in (1, n - 1, n // 2):
            close(conv(x.roll(by, -1), circular=True), conv(x, circular=True).roll(by, -1))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n", LENGTHS)
def test_frames_and_their_sum_commute_with_rotation_by_hops(n: int, window: int) -> None:
    frames, add = Frames(window, HOP, 12), OverlapAdd(12, window, HOP)
    x, y = torch.randn(2, 1, n * HOP), torch.randn(2, 12, n)
    for by in (1, n - 1, n // 2):
        found = frames(x.roll(by * HOP, -1), circular=True)
        close(found, frames(x, circular=True).roll(by, -1))
        close(add(y.roll(by, -1), circular=True), add(y, circular=True).roll(by * HOP, -1))


@pytest.mark.parametrize("n", LENGTHS)
def test_circular_attention_commutes_with_rotation(n: int) -> None:
    attention = Attention(16, 2).double()
    x = torch.randn(2, n, 16, dtype=torch.float64)
    for by in (1, n - 1, n // 2):
        found = attention(x.roll(by, 1), circular=True)
        expected = attention(x, circular=True).roll(by, 1)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_attention_on_a_line_does_not() -> None:
    attention, x = Attention(16, 2), torch.randn(2, 24, 16)
    moved = attention(x.roll(5, 1), circular=False) - attention(x, circular=False).roll(5, 1)
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("circular", [False, True])
def test_attention_knows_where_things_are(circular: bool) -> None:
    attention, x = Attention(16, 2), torch.randn(2, 24, 16)
    order = torch.randperm(24)
    mixed = attention(x[:, order], circular=circular) - attention(x, circular=circular)[:, order]
    assert mixed.abs().max() > 1e-3


@pytest.mark.parametrize("circular", [False, True])
def test_turning_keeps_lengths_and_makes_products_follow_distance(circular: bool) -> None:
    x, y = (torch.randn(8, dtype=torch.float64).expand(12, 8) for _ in range(2))
    one, other = rotary(x, circular=circular), rotary(y, circular=circular)
    torch.testing.assert_close(one.norm(dim=1), x.norm(dim=1))
    products = one @ other.T
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


# Attention masks.


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("reach", [None, 2])
def test_attention_is_its_formula(reach: int | None, circular: bool) -> None:
    """Softmax of scaled products of turned queries and keys, head by head (Vaswani et al. 2017)."""
    attention, x = Attention(16, 2).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    mask = None if reach is None else local_mask(9, reach, circular=circular)
    parts = (x @ attention.inward.weight.T).chunk(3, -1)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        query, key, value = (part[..., head] for part in parts)
        query, key = rotary(query, circular=circular), rotary(key, circular=circular)
        likeness = query @ key.mT / 8**0.5
        if mask is not None:
            likeness = likeness.masked_fill(~mask, -torch.inf)
        heads.append(likeness.softmax(-1) @ value)
    expected = torch.cat(heads, -1) @ attention.outward.weight.T
    found = attention(x, circular=circular, reach=reach)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def gradients(mixed: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    weight = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(mixed.dtype)
    return torch.autograd.grad((mixed * weight).sum(), parts)


def of_attention(n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(2, 2, n, 8).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(("reach", "causal"), [(None, False), (2, False), (None, True)])
def test_attention_is_the_same_where_gradients_are_wanted(reach: int | None, causal: bool) -> None:
    attention, x = Attention(16, 2).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    found = attention(x, circular=False, reach=reach, causal=causal)
    assert found.requires_grad
    with torch.no_grad():
        expected = attention(x, circular=False, reach=reach, causal=causal)
    torch.testing.assert_close(found.detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_products_and_has_their_gradient(causal: bool) -> None:
    query, key, value = of_attention(9)
    mask = torch.ones(9, 9).tril().bool() if causal else None
    mine = attend(query, key, value, causal=causal)
    theirs = explicit_attention(query, key, value, mask)
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    found, expected = (gradients(mixed, query, key, value) for mixed in (mine, theirs))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "mask", [None, local_mask(9, 2, circular=False), torch.ones(9, 9).tril().bool()]
)
def test_attention_by_products_is_pytorchs_and_has_its_gradient(mask: Tensor | None) -> None:
    query, key, value = of_attention(9)
    mine = explicit_attention(query, key, value, mask)
    theirs = F.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    found, expected = (gradients(mixed, query, key, value) for mixed in (mine, theirs))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [*LENGTHS, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("reach", [0, 1, 5, BLOCK, 2 * BLOCK + 1])
@pytest.mark.parametrize("circular", [False, True])
def test_attention_block_by_block_is_that_of_all_pairs(n: int, reach: int, circular: bool) -> None:
    query, key, value = of_attention(n)
    mine = local_attention(query, key, value, reach, circular=circular)
    theirs = explicit_attention(query, key, value, local_mask(n, reach, circular=circular))
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    found, expected = (gradients(mixed, query, key, value) for mixed in (mine, theirs))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_bfloat16_with_gradients_is_that_without(causal: bool) -> None:
    query, key, value = of_attention(9, torch.bfloat16)
    found = attend(query, key, value, causal=causal)
    assert found.requires_grad
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        query, key, value = (part.float() for part in (query, key, value))
        expected = attend(query, key, value, causal=causal)
    torch.testing.assert_close(found.detach().float(), expected, atol=0.03, rtol=0)


def test_attention_to_what_is_near_in_bfloat16_is_that_in_float32() -> None:
    parts = of_attention(70, torch.bfloat16)
    found = local_attention(parts[0], parts[1], parts[2], 5, circular=True)
    assert found.dtype == torch.bfloat16
    query, key, value = (part.float() for part in parts)
    expected = local_attention(query, key, value, 5, circular=True)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


def test_what_was_before_has_no_reach() -> None:
    with pytest.raises(ValueError, match="no reach"):
        Attention(16, 2)(torch.randn(1, 9, 16), circular=False, reach=2, causal=True)


@pytest.mark.parametrize("n", [*LENGTHS, BLOCK + 1])
def test_restricted_circular_attention_commutes_with_rotation(n: int) -> None:
    attention = Attention(16, 2).double()
    x = torch.randn(2, n, 16, dtype=torch.float64)
    for by in (1, n - 1, n // 2):
        found = attention(x.roll(by, 1), circular=True, reach=2)
        expected = attention(x, circular=True, reach=2).roll(by, 1)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", LENGTHS)
def test_causal_attention_sees_itself_and_what_was_before(n: int) -> None:
    attention, x = Attention(16, 2), torch.randn(2, n, 16)
    found = attention(x, circular=False, causal=True)
    for end in range(1, n + 1):
        close(found[:, end - 1], attention(x[:, :end], circular=False)[:, -1])


@pytest.mark.parametrize("pieces", [(24,), (1,) * 24, (5, 1, 0, 17, 1)])
def test_steps_with_a_cache_are_the_whole(pieces: tuple[int, ...]) -> None:
    attention, x = Attention(16, 2), torch.randn(2, 24, 16)
    cache, found = attention.empty_cache(x), []
    for piece in torch.split(x, list(pieces), 1):
        mixed, cache = attention.step(piece, cache)
        found.append(mixed)
    close(torch.cat(found, 1), attention(x, circular=False, causal=True))
    assert cache.keys.shape == cache.values.shape == (2, 2, 24, 8)


def test_a_step_leaves_an_earlier_cache_as_it_was() -> None:
    attention, x = Attention(16, 2), torch.randn(2, 24, 16)
    _, cache = attention.step(x[:, :10], attention.empty_cache(x))
    before = [part.clone() for part in cache]
    first, _ = attention.step(x[:, 10:11], cache)
    attention.step(x[:, 11:], cache)
    again, _ = attention.step(x[:, 10:11], cache)
    assert torch.equal(first, again)
    assert all(torch.equal(part, old) for part, old in zip(cache, before, strict=True))


@pytest.mark.parametrize("start", [1, 7, 400])
def test_turning_may_start_anywhere(start: int) -> None:
    x = torch.randn(2, 412, 8)
    expected = rotary(x, circular=False)[:, start : start + 12]
    assert torch.equal(rotary(x[:, start : start + 12], circular=False, start=start), expected)


def test_turning_starts_at_zero() -> None:
    x = torch.randn(2, 12, 8)
    for circular in (False, True):
        found = rotary(x, circular=circular)
        assert torch.equal(found[:, 0], x[:, 0])
        assert not torch.equal(found[:, 1], x[:, 1])


def test_near_written_out_by_hand() -> None:
    def lines(mask: Tensor) -> list[str]:
        return ["".join("x" if attends else "." for attends in row) for row in mask.tolist()]

    assert lines(local_mask(5, 1, circular=False)) == ["xx...", "xxx..", ".xxx.", "..xxx", "...xx"]
    assert lines(local_mask(5, 1, circular=True)) == ["xx..x", "xxx..", ".xxx.", "..xxx", "x..xx"]
    for circular in (False, True):
        assert torch.equal(local_mask(5, 0, circular=circular), torch.eye(5, dtype=torch.bool))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("reach", [0, 1, 2, 30])
def test_nearness_is_mutual_and_wraps_around(n: int, reach: int) -> None:
    line, ring = (local_mask(n, reach, circular=circular) for circular in (False, True))
    assert torch.equal(line, line.T)
    assert torch.equal(ring, ring.T)
    assert torch.equal(ring, ring.roll((1, 1), (0, 1)))
    assert ring.sum(1).tolist() == [min(n, 2 * reach + 1)] * n
    assert (ring | ~line).all()
    assert line[0].sum() == min(n, reach + 1)


# A circle is a line that repeats.


@pytest.mark.parametrize("n", LENGTHS)
def test_a_circular_sequence_is_the_middle_of_a_line_that_repeats(n: int) -> None:
    x, wave = torch.randn(2, 6, n), torch.randn(2, 1, n * HOP)
    for layer in [*convs(), *(OverlapAdd(6, window, HOP) for window in WINDOWS)]:
        close(layer(x, circular=True), middle(layer, x))
    for window in WINDOWS:
        frames = Frames(window, HOP, 6)
        close(frames(wave, circular=True), middle(frames, wave))


# With ends.


@pytest.mark.parametrize("n", LENGTHS)
def test_a_convolution_with_ends_is_pytorchs_own(n: int) -> None:
    x = torch.randn(2, 6, n)
    for layer in convs():
        own, groups = layer.conv, layer.conv.groups
        reach = own.weight.shape[-1] // 2
        expected = F.conv1d(x, own.weight, own.bias, padding=reach, groups=groups)
        close(layer(x, circular=False), expected)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("n", LENGTHS)
def test_frames_and_their_sum_with_ends_are_pytorchs_own(n: int, window: int) -> None:
    frames, add = Frames(window, HOP, 12), OverlapAdd(12, window, HOP)
    x, y, reach = torch.randn(2, 1, n * HOP), torch.randn(2, 12, n), (window - HOP) // 2
    own = F.conv1d(x, frames.basis[:, None], stride=HOP, padding=reach)
    close(frames(x, circular=False), own)
    whole = F.conv_transpose1d(y, add.basis[:, None], stride=HOP)
    close(add(y, circular=False), whole[..., reach : reach + n * HOP])


# The basis.


@pytest.mark.parametrize("hops", [2, 4])
@pytest.mark.parametrize("hop", [4, 320])
@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_what_frames_take_apart_their_sum_puts_together(n: int, hop: int, hops: int) -> None:
    frames, add = Frames(hops * hop, hop, hop), OverlapAdd(hop, hops * hop, hop)
    x = torch.randn(2, 1, n * hop)
    taken = frames(x, circular=True)
    close(add(taken, circular=True), x)
    torch.testing.assert_close(taken.square().sum(), x.square().sum())


@pytest.mark.parametrize("hops", [2, 4])
def test_the_lowest_functions_hold_a_low_tone(hops: int) -> None:
    hop, n = 64, 32
    x = torch.cos(2 * torch.pi * 3.7 * torch.arange(n * hop) / hop / 16)[None, None]
    x = x * torch.hann_window(n * hop)
    frames, add = Frames(hops * hop, hop, 8), OverlapAdd(8, hops * hop, hop)
    missed = add(frames(x, circular=True), circular=True) - x
    assert missed.square().mean() < 1e-3 * x.square().mean()


def test_the_basis_is_orthonormal_and_begins_with_the_lowest() -> None:
    basis = lapped_transform(16, 32, 16)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-5, rtol=0)
    assert torch.equal(lapped_transform(5, 32, 16), basis[:5])
    turns = (basis[:, :-1] * basis[:, 1:] < 0).sum(1)
    assert turns.tolist() == sorted(turns.tolist())


# What cannot be built.


@pytest.mark.parametrize("length", [2, 8])
def test_a_kernel_without_a_middle(length: int) -> None:
    with pytest.raises(ValueError, match=f"a kernel of {length} has no middle"):
        Conv(4, 4, length)


@pytest.mark.parametrize(("window", "hop"), [(7, 8), (9, 8), (15, 8), (4, 8)])
def test_a_window_that_is_not_centred_on_its_hop(window: int, hop: int) -> None:
    for layer in (Frames, OverlapAdd):
        with pytest.raises(ValueError, match="not centred on a hop of 8"):
            layer(*(window, hop, 4) if layer is Frames else (4, window, hop))


@pytest.mark.parametrize(("dim", "heads"), [(6, 2), (16, 3), (3, 1)])
def test_channels_that_are_not_heads_of_pairs(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{dim} channels are not {heads} heads of pairs"):
        Attention(dim, heads)
