"""The daemon's mode before it trains."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

from moe.mode import MoeMode
from node.identity import verify_signature
from swarm.calls import Guard
from swarm.calls.rates import UNLIMITED
from swarm.mode import RunContext
from swarm.mode_info import Wishes
from tests.fakes.signer import SeededSigner
from tests.moe.keepers import MODEL, SPEC_OF_RUN


def test_a_trunk_that_is_pushed_before_this_node_trains_is_no_fault_of_its_sender() -> None:
    signer = SeededSigner(1)
    context = RunContext(
        run=SPEC_OF_RUN, signer=signer, verify=verify_signature, host=cast("Any", None),
        directory=cast("Any", None), guard=Guard(), rates=UNLIMITED, run_key=None, wishes=Wishes(),
        founding=cast("Any", None), folder=Path(), life=cast("Any", None),
        refuses_work=lambda: None, rng=random.Random(1), keeper=cast("Any", None),
        unix_s=lambda: 0.0,
    )  # fmt: skip
    limits = MoeMode(context)._gossip_limits(signer.peer_id)
    trunk_bytes = 4 * MODEL.width * (256 + MODEL.context + 16 * MODEL.layers * MODEL.width)
    assert limits.body_bytes_max >= trunk_bytes
    assert limits.tensors_max == 1
