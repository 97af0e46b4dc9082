"""Payloads: what goes in comes out, and digests see every byte."""

import warnings

import numpy as np
import pytest
import torch

from rlpipe.weights.packing import ALIGNMENT, digest_of, pack, unpack
from rlpipe.weights.payload import WeightsRejected, check_fits


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "transposed": torch.randn(6, 4, generator=generator).t(),
        "half": torch.randn(33, generator=generator).bfloat16(),
        "count": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "long": torch.arange(400),
    }


@pytest.mark.parametrize("bucket_bytes", [1, 200, 4096, 1 << 20])
def test_unpack_gives_back_what_was_packed(bucket_bytes):
    payload = pack(tensors().items(), bucket_bytes)
    for (name, found), (expected_name, expected) in zip(unpack(payload), tensors().items(), strict=True):
        assert (name, found.dtype) == (expected_name, expected.dtype)
        assert torch.equal(found, expected)
    assert all(entry.offset % ALIGNMENT == 0 for entry in payload.index)
    assert payload.kind == "full"


def test_buckets_are_few_and_no_larger_than_needed():
    payload = pack(tensors().items(), bucket_bytes=3300)
    assert [bucket.nbytes for bucket in payload.buckets] == [512, 3200]
    assert len(pack(tensors().items(), bucket_bytes=1 << 20).buckets) == 1


def test_read_only_buckets_are_read_in_place_without_a_warning():
    payload = pack(tensors().items())
    for bucket in payload.buckets:
        bucket.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = dict(unpack(payload))["matrix"]
    start = payload.buckets[0].__array_interface__["data"][0]
    assert start <= matrix.data_ptr() < start + payload.buckets[0].nbytes


def test_tied_parameters_travel_once():
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(3, 2), "head": torch.nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    assert [entry.name for entry in pack(model.named_parameters()).index] == ["embed.weight"]


def test_a_name_that_comes_twice_is_an_error():
    with pytest.raises(ValueError, match="norm comes twice"):
        pack([("norm", torch.ones(2)), ("norm", torch.ones(2))])


def test_an_adapter_carries_its_config():
    payload = pack([("a", torch.ones(1))], adapter_config={"r": 4})
    assert (payload.kind, payload.adapter_config) == ("adapter", {"r": 4})


def test_digest_is_the_same_everywhere():
    assert pack([("a", torch.arange(4)), ("b", torch.ones(3))]).digest == "c4fe622aa3b3784437fcc3885a34c489"
    assert digest_of([]) == "99aa06d3014798d86001c324468d497f"


def test_digest_sees_every_byte_and_their_order():
    data = np.arange(80, dtype=np.uint8)
    digests = {digest_of([data])}
    for position in (0, 15, 16, 40, 79):
        changed = data.copy()
        changed[position] ^= 1
        digests.add(digest_of([changed]))
    digests.add(digest_of([np.concatenate([data[16:32], data[:16], data[32:]])]))
    assert len(digests) == 7


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": (2,), "b": (3,)}, "missing b"),
        ({}, "of another shape a"),
        ({"a": (1, 2)}, "of another shape a"),
        ({"a": (2,), **{f"x{i}": (1,) for i in range(5)}}, "missing x0, x1, x2 and 2 more"),
    ],
)
def test_a_payload_that_does_not_fit_is_rejected(shapes, message):
    with pytest.raises(WeightsRejected, match=message):
        check_fits(pack([("a", torch.ones(2))]), shapes)


def test_a_payload_that_fits_is_not():
    check_fits(pack([("a", torch.ones(2))]), {"a": (2,)})
