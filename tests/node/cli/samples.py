"""A status as the daemon gives it, with everything that differs from run to run fixed."""

from __future__ import annotations

from typing import Any

PEER = "12D3KooWBXu3uGPMkjjxViK6autSnFH5QaKJgTwW8CaSxYSD6yYL"

STATUS: dict[str, Any] = {
    "schema_version": 1,
    "time": "2026-08-23T10:15:02.113Z",
    "healthy": False,
    "unhealthy_reasons": ["isolated: no peer for 31 s; see services.joining.dialled"],
    "node": {
        "peer_id": PEER,
        "version": "0.1.0",
        "pid": 4711,
        "started": "2026-08-23T10:00:00.000Z",
        "uptime_seconds": 902.1,
        "addresses": [f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}"],
        "state_dir": "/var/lib/murmura",
    },
    "life": {
        "state": "isolated",
        "reason": "no peer for 31 s",
        "since": "2026-08-23T10:14:00.000Z",
        "since_seconds": 62.1,
    },
    "run": {"run_id": "ab" * 32, "name": "try", "mode": "pipeline", "private": True},
    "network": {
        "peers": 0,
        "transport": {"pid": 4712, "restarts": 0, "streams_refused": 0},
        "clock_skew_seconds": -0.7,
        "streams_served": 0,
        "streams_refused": 0,
        "bytes_held": 0,
        "faults": 0,
        "http": None,
    },
    "resources": {
        "memory_bytes": 200 << 20,
        "cpu_seconds": 10.5,
        "processes": 3,
        "descriptors": 30,
        "loop_lag_p50_ms": 0.4,
        "loop_lag_p99_ms": 3.2,
        "loop_lag_max_ms": 5.0,
        "loop_lag_samples": 600,
        "task_seconds": 0.0,
    },
    "limits": {
        "threads": 3,
        "nice": 5,
        "descriptors_max": 20000,
        "memory_max_bytes": 512 << 20,
        "upload_mbit_s": 5.0,
        "download_mbit_s": None,
    },
    "services": {
        "joining": {
            "members_known": 3,
            "founder": None,
            "dialled": [
                {
                    "address": f"/ip4/198.51.100.9/tcp/4001/p2p/{PEER}",
                    "ok": False,
                    "reason": "connection refused",
                    "seconds_ago": 4.0,
                }
            ],
            "up": True,
            "restarts": 0,
            "last_error": None,
        },
        "pipeline": {
            "stage": 1,
            "step": 41,
            "steps": 120,
            "loss": 2.34567891,
            "tokens_per_second": 15080.0,
            "members_by_stage": [2, 2, 1],
            "expulsions": 0,
            "up": False,
            "restarts": 2,
            "last_error": "NodeError: the disk is full",
        },
    },
}
