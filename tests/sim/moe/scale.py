"""How long a beam search takes over a directory of many nodes: the real search, view and look-ups, in virtual time.

One node in ten thousand knows nothing yet and searches (cold), or has kept its view fresh for a while (warm). A look is an
iterative Kademlia look-up as hivemind's directory makes it, over routing tables drawn for every node; the five nodes nearest
to a key hold its records, and a node that knows nothing goes on with what the first of them has.

The latencies are an assumption, not a measurement: a round trip of each pair is log-normal with a median of 100 ms and a
standard deviation of 0.7 of its logarithm (mean 128 ms, one in a hundred over 510 ms), and each message takes up to a fifth
more. All nodes answer: the directory leaves those alone that do not.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from protocols.experts.lookups import PATIENCE_S, LookUps
from protocols.experts.messages import Stated
from protocols.experts.search import BeamSearch, Found, LookUp
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.experts.view import HostStatement, PrefixView
from protocols.ids import PeerID
from tests.sim.engine.clock import Clock

SIZES: Final = (100, 1_000, 10_000)
REPORTED_MS: Final = {100: 317, 1_000: 528, 10_000: 764}
"""Learning@home's own search, at latencies of its own (arXiv:2002.04013; the middle one is read from a plot)."""
SEARCHES: Final = 40
WARM_SEARCHES: Final = 10
_MEDIAN_S: Final = 0.1
_SIGMA: Final = 0.7
_JITTER: Final = 0.2
_BITS: Final = 64
_BUCKET: Final = 20
_WORKERS: Final = 4
_REPLICAS: Final = 5
_FILLED: Final = 0.5
"""Share of the grid that is occupied: one expert for each node."""
_BEAM: Final = 16
"""What a layer asks for with k = 4 (`moe.layer`)."""


@dataclass(slots=True)
class Overlay:
    """The nodes of a Kademlia network and what each knows of the others."""

    ids: list[int]
    rng: random.Random
    _tables: dict[int, list[int]] = field(default_factory=dict)
    _nearest: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    _holders: dict[int, frozenset[int]] = field(default_factory=dict)

    def table(self, node: int) -> list[int]:
        """Return a node's contacts: up to a bucket for each length of the prefix that they share with it."""
        known = self._tables.get(node)
        if known is None:
            known = []
            for bit in range(_BITS - 1, -1, -1):
                sharing = self._with_prefix((node >> bit) ^ 1, bit)
                known += self.rng.sample(sharing, min(_BUCKET, len(sharing)))
                if len(self._with_prefix(node >> bit, bit)) == 1:
                    break
            self._tables[node] = known
        return known

    def _with_prefix(self, prefix: int, bit: int) -> list[int]:
        """Return the nodes whose bits above and at this one are these."""
        low = bisect.bisect_left(self.ids, prefix << bit)
        return self.ids[low : bisect.bisect_left(self.ids, (prefix + 1) << bit)]

    def nearest(self, node: int, target: int) -> list[int]:
        """Answer which contacts are nearest to a key."""
        key = node, target
        if key not in self._nearest:
            self._nearest[key] = heapq.nsmallest(_BUCKET, self.table(node), key=target.__xor__)
        return self._nearest[key]

    def holders(self, target: int) -> frozenset[int]:
        """Return the nodes that store a key."""
        if target not in self._holders:
            nearest = heapq.nsmallest(_REPLICAS, self.ids, key=target.__xor__)
            self._holders[target] = frozenset(nearest)
        return self._holders[target]


class Look:
    """One iterative look-up: it ends when the nearest nodes that anybody knows of have been asked.

    Args:
      first: called when the first node that holds the key's records has answered.
    """

    def __init__(
        self,
        bench: Bench,
        node: int,
        target: int,
        first: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self._bench, self._node, self._target = bench, node, target
        self._first, self._done = first, done
        self._holders = bench.overlay.holders(target)
        self._held = False
        self._seen = {node}
        self._near = list(bench.overlay.nearest(node, target))
        self._seen.update(self._near)
        self._asked: set[int] = set()
        self._waiting = 0
        self._next()

    def _next(self) -> None:
        nearest = sorted(self._near, key=self._target.__xor__)[:_BUCKET]
        for node in nearest:
            if self._waiting >= _WORKERS:
                return
            if node not in self._asked:
                self._asked.add(node)
                self._waiting += 1
                bench = self._bench
                bench.clock.after(bench.round_trip_s(self._node, node), self._answered, node)
        if self._waiting == 0:
            self._done()

    def _answered(self, node: int) -> None:
        self._waiting -= 1
        if node in self._holders and not self._held:
            self._held = True
            self._first()
        told = self._bench.overlay.nearest(node, self._target)
        new = [other for other in told if other not in self._seen]
        self._seen.update(new)
        self._near += new
        self._next()


class Bench:
    """One size: an overlay, a grid half full of experts, and searches."""

    def __init__(self, nodes: int, seed: int) -> None:
        self.rng = rng = random.Random(f"scale/{nodes}/{seed}")
        self.clock = Clock()
        ids = sorted(rng.getrandbits(_BITS) for _ in range(nodes))
        self.overlay = Overlay(ids, rng)
        side = math.ceil(math.sqrt(nodes / _FILLED))
        self.grid = Grid("ffn0", (side, side))
        places = rng.sample(range(side * side), nodes)
        self.records: dict[Prefix, list[tuple[PeerID, Stated]]] = {}
        for index, place in enumerate(places):
            uid = ExpertUID("ffn0", divmod(place, side))
            host = PeerID(b"host%06d" % index)
            self.records.setdefault(uid.prefixes[-1], []).append((host, Stated(uid.place[-1], 1)))
        self._pairs: dict[tuple[int, int], float] = {}
        self.looks_s: list[float] = []
        self.firsts_s: list[float] = []

    def round_trip_s(self, a: int, b: int) -> float:
        key = min(a, b), max(a, b)
        base_s = self._pairs.get(key)
        if base_s is None:
            base_s = self._pairs[key] = self.rng.lognormvariate(math.log(_MEDIAN_S), _SIGMA)
        return base_s * (1 + _JITTER * self.rng.random())

    def best_share(self, result: Result) -> float:
        """Return how much of what a beam search finds when every look is answered at once was found."""
        view = PrefixView(fresh_s=math.inf)
        search = BeamSearch(self.grid, result.scores, beam=_BEAM, until_s=math.inf)
        while isinstance(step := search.proceed(view, 0.0), LookUp):
            for prefix in step.prefixes:
                lines = self.records.get(prefix, [])
                stated = [HostStatement(host, (line,), 1.0, 0.0) for host, line in lines]
                view.learn(prefix, stated, asked_s=0.0)
        return len({*step.uids}.intersection(result.found)) / len(step.uids)

    def searcher(self) -> Searcher:
        node = self.rng.choice(self.overlay.ids)
        return Searcher(self, node)


@dataclass(frozen=True, slots=True)
class Result:
    """What a search came to."""

    seconds: float
    found: Sequence[ExpertUID]
    in_time: bool
    """It ended before its patience did."""
    scores: Sequence[Sequence[float]]
    """What it searched by."""


class Searcher:
    """A node with the product's cores, which looks its prefixes up."""

    def __init__(self, bench: Bench, node: int) -> None:
        self._bench, self._node = bench, node
        self.view = PrefixView(fresh_s=2.0)
        self._looks = LookUps(self.view)
        self._search: BeamSearch | None = None
        self._began_s = 0.0
        self._scores: list[list[float]] = []
        self.result: Result | None = None
        """Of the latest search, once it has ended."""

    def search(self) -> None:
        """Search for the experts with the highest of random scores."""
        bench, rng = self._bench, self._bench.rng
        now_s = self._began_s = bench.clock.now_s
        scores = [[rng.gauss(0, 1) for _ in range(size)] for size in bench.grid.sizes]
        self._scores = scores
        self.result = None
        until_s = now_s + PATIENCE_S
        self._search = BeamSearch(bench.grid, scores, beam=_BEAM, until_s=until_s)
        bench.clock.after(PATIENCE_S, self._proceed)
        self._proceed()

    def _proceed(self) -> None:
        bench, search = self._bench, self._search
        if search is None or self.result is not None:
            return
        now_s = bench.clock.now_s
        step = search.proceed(self.view, now_s)
        if isinstance(step, Found):
            in_time = now_s < search.until_s
            self.result = Result(now_s - self._began_s, step.uids, in_time, self._scores)
            return
        self._looks.hurry(step.prefixes, now_s)
        self.look()

    def look(self) -> None:
        bench = self._bench
        for prefix in self._looks.begin(bench.clock.now_s):
            asked_s = bench.clock.now_s
            key = random.Random(str(prefix)).getrandbits(_BITS)
            first = partial(self._began_to_answer, prefix, asked_s)
            Look(bench, self._node, key, first, partial(self._ended, prefix, asked_s))

    def _began_to_answer(self, prefix: Prefix, asked_s: float) -> None:
        statements = self._statements(prefix, asked_s)
        if statements and self.view.asked_s(prefix) == -math.inf:
            self._bench.firsts_s.append(self._bench.clock.now_s - asked_s)
            self._looks.began_to_answer(prefix, statements, asked_s=asked_s)
            self._proceed()

    def _statements(self, prefix: Prefix, asked_s: float) -> list[HostStatement]:
        bench = self._bench
        until_s = bench.clock.now_s + 60
        by_host = bench.records.get(prefix, [])
        return [HostStatement(host, (line,), until_s, asked_s) for host, line in by_host]

    def _ended(self, prefix: Prefix, asked_s: float) -> None:
        bench, now_s = self._bench, self._bench.clock.now_s
        bench.looks_s.append(now_s - asked_s)
        statements = self._statements(prefix, asked_s)
        self._looks.ended(prefix, statements, asked_s=asked_s, now_s=now_s)
        self._proceed()
        self.look()


def measure(seed: int) -> dict[str, Any]:
    """Return the figures of all sizes."""
    rows = {nodes: _measured(nodes, seed) for nodes in SIZES}
    return {
        "latency_model": f"round trip of a pair log-normal, median {1000 * _MEDIAN_S:.0f} ms, sigma {_SIGMA}, "
        f"jitter up to {_JITTER:.0%}, no losses: assumed, not measured",
        "look_up": f"Kademlia, buckets of {_BUCKET}, {_WORKERS} questions at a time, all {_BUCKET} nearest asked",
        "beam": _BEAM,
        "patience_ms": 1000 * PATIENCE_S,
        "search_p50_ms": {nodes: row["cold_p50_ms"] for nodes, row in rows.items()},
        "search_reported_ms": REPORTED_MS,
        "sizes": rows,
    }


def _measured(nodes: int, seed: int) -> dict[str, Any]:
    bench = Bench(nodes, seed)
    began_s = time.monotonic()
    cold = [_cold(bench) for _ in range(SEARCHES)]
    looks_s, firsts_s = list(bench.looks_s), list(bench.firsts_s)
    warm, warm_wall_s = _warm(bench)
    return {
        "grid": list(bench.grid.sizes),
        "experts": nodes,
        "cold_p50_ms": _cut(cold, 10),
        "cold_p95_ms": _cut(cold, 19),
        "cold_in_time_share": round(statistics.fmean(s.in_time for s in cold), 3),
        "cold_best_share": round(statistics.fmean(bench.best_share(s) for s in cold), 3),
        "cold_found_mean": round(statistics.fmean(len(s.found) for s in cold), 2),
        "look_up_first_p50_ms": round(1000 * statistics.median(firsts_s), 1),
        "look_up_p50_ms": round(1000 * statistics.quantiles(looks_s, n=20)[9], 1),
        "look_up_p95_ms": round(1000 * statistics.quantiles(looks_s, n=20)[18], 1),
        "warm_p50_ms": _cut(warm, 10),
        "warm_p95_ms": _cut(warm, 19),
        "warm_found_mean": round(statistics.fmean(len(s.found) for s in warm), 2),
        "warm_compute_p50_ms": round(1000 * statistics.median(warm_wall_s), 2),
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _cold(bench: Bench) -> Result:
    """Search from a node that knows nothing."""
    searcher = bench.searcher()
    searcher.search()
    bench.clock.run_until(bench.clock.now_s + PATIENCE_S + 0.001)
    assert searcher.result is not None, "every search ends within its patience"
    return searcher.result


def _warm(bench: Bench) -> tuple[list[Result], list[float]]:
    """Search from a node that has looked all of the layer's prefixes up, and goes on keeping them fresh."""
    searcher = bench.searcher()
    searcher.view.want(bench.grid.prefixes())
    while not searcher.view.complete([bench.grid]):
        searcher.look()
        bench.clock.run_until(bench.clock.now_s + 0.1)
    warm: list[Result] = []
    wall_s: list[float] = []
    for _ in range(WARM_SEARCHES):
        began_s = time.perf_counter()
        searcher.search()
        wall_s.append(time.perf_counter() - began_s)
        bench.clock.run_until(bench.clock.now_s + PATIENCE_S + 0.001)
        assert searcher.result is not None
        warm.append(searcher.result)
        searcher.look()
    return warm, wall_s


def _cut(of: Sequence[Result], twentieth: int) -> float:
    seconds = [result.seconds for result in of]
    return round(1000 * statistics.quantiles(seconds, n=20, method="inclusive")[twentieth - 1], 1)
