"""The overlays as kustomize renders them: valid, closed, and with time enough for a node to drain."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from node.config import KEYS, NodeConfig, env_name, load
from node.http.access import HEALTH
from node.http.address import parse_address
from node.liveness import TASK_S_MAX

yaml = pytest.importorskip("yaml")

MANIFESTS: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS: Final = ("cpu", "gpu", "spot", "first")
SAVING_S: Final = 5.0
"""What a node may take after its drain."""
MARGIN_S: Final = 5.0
"""For the kubelet's signal to arrive, and the children to end."""
SPOT_NOTICE_S: Final = 30.0

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]
needs_schemas = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate is not installed",
)


def _kustomize(overlay: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["kubectl", "kustomize", str(overlay)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _copy(folder: Path) -> Path:
    """Copy the manifests without the invite and the run file that an operator may have put there."""
    without = shutil.ignore_patterns("invite.txt", "run.toml")
    return Path(shutil.copytree(MANIFESTS, folder / "kubernetes", ignore=without))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give a function: name of an overlay -> its resources by kind."""
    copy = _copy(tmp_path_factory.mktemp("manifests"))
    (copy / "join" / "invite.txt").write_text("murmura1test\n", "utf-8")
    (copy / "overlays" / "first" / "run.toml").write_text('name = "test"\n', "utf-8")

    @cache
    def render(overlay: str) -> dict[str, dict[str, Any]]:
        shown = _kustomize(copy / "overlays" / overlay)
        assert shown.returncode == 0, shown.stderr
        resources = list(yaml.safe_load_all(shown.stdout))
        by_kind = {resource["kind"]: resource for resource in resources}
        assert len(by_kind) == len(resources)
        return by_kind

    return render


def _pod(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = resources["StatefulSet"]["spec"]["template"]["spec"]
    return pod


def _environment(resources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    (container,) = _pod(resources)["containers"]
    return {item["name"]: item for item in container["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_drain_before_it_is_killed(rendered: Any, overlay: str) -> None:
    resources = rendered(overlay)
    drain_s = float(_environment(resources)["MURMURA_DRAIN_S"]["value"])
    grace_s = _pod(resources)["terminationGracePeriodSeconds"]
    assert grace_s >= drain_s + SAVING_S + MARGIN_S
    (container,) = _pod(resources)["containers"]
    assert "lifecycle" not in container, "a preStop would take its time from the drain"
    if overlay == "spot":
        assert grace_s < SPOT_NOTICE_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_variables_are_settings(rendered: Any, overlay: str) -> None:
    names = {name for name in _environment(rendered(overlay)) if name.startswith("MURMURA_")}
    assert names <= {env_name(key) for key in KEYS}
    assert _pod(rendered(overlay))["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_do_nothing_but_its_work(rendered: Any, overlay: str) -> None:
    pod = _pod(rendered(overlay))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_node_writes_is_on_a_volume(rendered: Any, overlay: str) -> None:
    resources = rendered(overlay)
    (container,) = _pod(resources)["containers"]
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
    environment = _environment(resources)
    state = Path(environment["MURMURA_STATE_DIR"]["value"])
    runtime = Path(environment["MURMURA_RUNTIME_DIR"]["value"])
    # Below the mount, not the mount: that one belongs to root, and the node refuses it.
    assert mounts[state.parent] == "state"
    assert mounts[runtime.parent] == "runtime"
    (claim,) = resources["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"
    # Else the kubelet opens the identity to the group at each start, and the node refuses it.
    assert _pod(resources)["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_all_point_at_the_same_pods_and_port(rendered: Any) -> None:
    resources = rendered("cpu")
    labels = resources["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    service = resources["Service"]["spec"]
    assert service["clusterIP"] == "None"
    assert resources["StatefulSet"]["spec"]["serviceName"] == "murmura"
    for selector in (
        service["selector"],
        resources["StatefulSet"]["spec"]["selector"]["matchLabels"],
        resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    (container,) = _pod(resources)["containers"]
    ingress, scrapes = resources["NetworkPolicy"]["spec"]["ingress"]
    port, http = (item["containerPort"] for item in container["ports"])
    assert [item["port"] for item in scrapes["ports"]] == [http]
    assert "from" in scrapes, "metrics are not for everybody"
    assert [item["port"] for item in service["ports"]] == [port]
    assert [item["port"] for item in ingress["ports"]] == [port]
    assert _environment(resources)["MURMURA_LISTEN"]["value"].endswith(f"/tcp/{port}")


def test_probes_ask_the_paths_that_answer_without_name_or_token(rendered: Any) -> None:
    resources = rendered("cpu")
    (container,) = _pod(resources)["containers"]
    (http,) = (item for item in container["ports"] if item["name"] == "http")
    listen = parse_address(_environment(resources)["MURMURA_HTTP_LISTEN"]["value"])
    assert listen.port == http["containerPort"]
    assert not listen.is_loopback
    asked = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert {name: get["path"] for name, get in asked.items()} == {
        "startup": "/startupz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    for get in asked.values():
        assert get["port"] == "http"
        assert get["path"] in HEALTH


def test_a_hung_node_is_ended_within_minutes_and_a_slow_one_is_not(rendered: Any) -> None:
    (container,) = _pod(rendered("cpu"))["containers"]
    liveness = container["livenessProbe"]
    ended_s = TASK_S_MAX + liveness["periodSeconds"] * (liveness["failureThreshold"] + 1)
    assert ended_s <= 300
    # A loop that is late for some seconds, as on a machine that swaps, is no reason.
    assert liveness["timeoutSeconds"] >= 10
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120


def test_the_invite_reaches_the_node_as_a_secret(rendered: Any) -> None:
    resources = rendered("cpu")
    source = _environment(resources)["MURMURA_JOIN"]["valueFrom"]["secretKeyRef"]
    assert source["name"] == resources["Secret"]["metadata"]["name"]
    assert re.fullmatch(r"murmura-invite-\w+", source["name"])
    assert list(resources["Secret"]["data"]) == [source["key"]]


@pytest.mark.parametrize(
    ("overlay", "missing"), [("cpu", "join/invite.txt"), ("first", "first/run.toml")]
)
def test_a_file_that_is_still_to_be_written_is_named(
    tmp_path: Path, overlay: str, missing: str
) -> None:
    shown = _kustomize(_copy(tmp_path) / "overlays" / overlay)
    assert shown.returncode != 0
    assert missing in shown.stderr


def test_the_first_node_begins_a_run_under_a_name_that_outlives_its_address(rendered: Any) -> None:
    resources, others = rendered("first"), rendered("cpu")
    environment = _environment(resources)
    assert "MURMURA_JOIN" not in environment
    run = Path(environment["MURMURA_RUN"]["value"])
    (container,) = _pod(resources)["containers"]
    (mount,) = (item for item in container["volumeMounts"] if item["mountPath"] == str(run.parent))
    (volume,) = (item for item in _pod(resources)["volumes"] if item["name"] == mount["name"])
    assert volume["configMap"]["name"] == resources["ConfigMap"]["metadata"]["name"]
    assert list(resources["ConfigMap"]["data"]) == [run.name]
    spec = resources["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    pod = f"{resources['StatefulSet']['metadata']['name']}-0"
    announced = environment["MURMURA_ANNOUNCE"]["value"].replace("$(NAMESPACE)", "swarm")
    assert announced == f"/dns4/{pod}.{spec['serviceName']}.swarm.svc.cluster.local/tcp/4001"
    names = list(environment)
    assert names.index("NAMESPACE") < names.index("MURMURA_ANNOUNCE"), "else it is not filled in"
    assert load({"announce": (announced,)}, environ={"HOME": "/x"}).config.announce == (announced,)
    # The others may reach it, and one budget covers all.
    labels = spec["template"]["metadata"]["labels"]
    assert labels == others["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert "PodDisruptionBudget" not in resources


@needs_schemas
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_would_take_it(rendered: Any, overlay: str) -> None:
    validator = importlib.import_module("kubernetes_validate")
    version = validator.latest_version()
    for resource in rendered(overlay).values():
        validator.validate(resource, version, strict=True)


def test_the_default_drain_fits_the_base(rendered: Any) -> None:
    value = float(_environment(rendered("cpu"))["MURMURA_DRAIN_S"]["value"])
    assert value == NodeConfig().drain_s
