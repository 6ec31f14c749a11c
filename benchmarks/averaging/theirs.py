"""The other side of benchmarks.averaging: hivemind's DecentralizedAverager. Shares no code with ours but the vectors."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import torch
from hivemind import DHT
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.compression import (
    NoCompression,
    Quantile8BitQuantization,
    Uniform8BitQuantization,
    quantization,
)

from benchmarks.averaging.cases import error_of, sample_of, vector_of
from benchmarks.workers import answer_line

COMPRESSIONS: Final[dict[str, Any]] = {
    "float32": NoCompression,
    "uniform8": Uniform8BitQuantization,
    "quantile8": Quantile8BitQuantization,
}

"""The fourth, BLOCKWISE_8BIT, needs bitsandbytes."""


def _int(value: Any) -> int:
    """Take the number out of an array of one, which numpy has refused to do by itself since 2.4."""
    return int(value[0])


def main(options: dict[str, Any]) -> None:
    """Start a DHT and an averager, then answer questions until the input ends."""
    torch.set_num_threads(1)
    quantization.int = (
        _int  # else neither of the 8-bit codecs works: they call int() with such arrays
    )
    dht = DHT(
        initial_peers=options["initial_peers"], start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"]
    )
    averager = DecentralizedAverager(
        [torch.zeros(options["elements"])],
        dht,
        prefix="benchmark",
        target_group_size=options["group"],  # full, a group begins at once
        initial_group_bits="",
        min_matchmaking_time=5.0,
        allreduce_timeout=30.0,  # without these it waits for a dead peer for ever
        sender_timeout=10.0,
        reducer_timeout=20.0,
        next_chunk_timeout=10.0,
        compression=COMPRESSIONS[options["codec"]](),
        start=True,
    )
    answer_line({"address": str(dht.get_visible_maddrs()[0])})
    for line in sys.stdin:
        answer_line(_do(json.loads(line), averager))
    averager.shutdown()
    dht.shutdown()


def _do(question: dict[str, Any], averager: DecentralizedAverager) -> dict[str, Any]:
    peer, version = question["peer"], question["version"]
    if question["do"] == "prepare":
        with averager.get_tensors() as (tensor,):
            tensor[:] = vector_of(peer, version, question["elements"])
        return {}
    began_s = time.monotonic()
    try:
        group = averager.step(timeout=30, allow_retries=False)
    except Exception as error:  # noqa: BLE001 - however it fails, the round failed
        return {"failed": type(error).__name__, "seconds": time.monotonic() - began_s}
    seconds = time.monotonic() - began_s
    if not group:
        return {"failed": "no group", "seconds": seconds}
    with averager.get_tensors() as (tensor,):
        deviation, sample = error_of(tensor, len(group), version), sample_of(tensor)
    return {"seconds": seconds, "members": len(group), "error": deviation, "sample": sample}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
