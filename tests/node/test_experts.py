"""What `murmura.Server` and `murmura.RemoteMixtureOfExperts` refuse, before and after the network is up."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import murmura
from moe.script import experts_run, flat_optimizer, uid_of
from protocols.run import run_from_canonical_bytes_untrusted
from protocols.schema import SchemaError

pytestmark = pytest.mark.trio
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


@pytest.fixture(scope="module")
def swarm() -> Iterator[murmura.Swarm]:
    run = experts_run("test", {"ffn": (2, 2)}, width=4)
    with murmura.join(run=run, listen=LISTEN) as swarm:
        yield swarm


def test_a_run_of_experts_travels_and_keeps_its_id() -> None:
    run = experts_run("test", {"ffn": (2, 2), "last": (3,)}, width=4, refresh_s=1.0)
    assert run_from_canonical_bytes_untrusted(run.canonical_bytes(), run.run_id) == run


@pytest.mark.parametrize("layers", [{}, {"0": (2,)}, {"ffn": (0,)}, {"ffn": (1, 1, 1, 1, 1)}])
def test_a_run_with_wrong_layers_is_refused(layers: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(SchemaError):
        experts_run("test", layers, width=4)


@pytest.mark.parametrize("name", ["ffn.2.0", "ffn.0", "other.0.0", "ffn", "ffn.00.1"])
def test_an_expert_outside_of_the_run_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"ffn"):
        uid_of(experts_run("test", {"ffn": (2, 2)}, width=4), name)


def test_the_optimizer_steps_at_the_rate_that_it_was_given() -> None:
    make, rate = flat_optimizer(functools.partial(torch.optim.SGD, lr=0.5))
    vector = torch.zeros(3)
    make(vector, 0).apply(torch.ones(3), rate=rate, step=0)
    assert vector.tolist() == [-0.5, -0.5, -0.5]


def test_server_and_layer_in_one_script_and_what_they_refuse(swarm: murmura.Swarm) -> None:
    with pytest.raises(murmura.NodeError, match="no layer 'other'"):
        murmura.RemoteMixtureOfExperts(swarm, "other")
    with pytest.raises(murmura.NodeError, match="nobody hosts"):
        murmura.RemoteMixtureOfExperts(swarm, "ffn", wait_s=0.3)
    with pytest.raises(murmura.NodeError, match="cannot be hosted"):
        murmura.Server(swarm, {"ffn.0.1": nn.Linear(5, 4)}, optimizer=ADAM)
    expert = nn.Linear(4, 4)
    before = expert.weight.detach().clone()
    server = murmura.Server(swarm, {"ffn.0.1": expert}, optimizer=ADAM)
    layer = murmura.RemoteMixtureOfExperts(swarm, "ffn", k=1)
    x = torch.randn(6, 4, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert server.steps == {"ffn.0.1": 1}
    assert not torch.equal(expert.weight, before)
    with pytest.raises(murmura.NodeError, match="a server already"):
        murmura.Server(swarm, {"ffn.1.1": nn.Linear(4, 4)}, optimizer=ADAM)
