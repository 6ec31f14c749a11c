"""What clouds say before they take a machine away, and how they are asked. Pure: questions out, answers in.

| cloud | asked | a notice is | time left |
|---|---|---|---|
| aws | a token (IMDSv2), then `spot/instance-action`, 404 while there is none | action `stop`, `terminate` or `hibernate` | two minutes |
| gcp | `instance/preempted` | `TRUE` | 30 s |
| azure | the machine's own name, once, then `scheduledevents`, which speak of the whole set of machines | `Preempt` or `Terminate` of this machine | 30 s or more |

An answer is read as something that anybody may have sent: on a machine in no cloud, or behind a hostile network, the
address may belong to somebody else. All that a false notice can do is to make this node drain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

Cloud: TypeAlias = Literal["aws", "gcp", "azure"]
ADDRESS: Final = "http://169.254.169.254"
"""Link-local, the same at all three."""
ANSWER_BYTES_MAX: Final = 64 * 1024
_TOKEN_S: Final = 21_600
_AZURE_ENDS: Final = frozenset({"Preempt", "Terminate"})
_AWS_ACTIONS: Final = frozenset({"stop", "terminate", "hibernate"})
_SHOWN_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Question:
    """One HTTP request."""

    method: Literal["GET", "PUT"]
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)


class NoticeError(Exception):
    """The answer is none; the text says why."""


class NoticePoll:
    """Asks one cloud, a question at a time, and takes the answers.

    Args:
      cloud: which one.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._known = ""
        """aws: the token; azure: this machine's name."""

    def question(self) -> Question:
        """Return what is to be asked now."""
        match self._cloud:
            case "aws" if not self._known:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
                return Question("PUT", "/latest/api/token", ttl)
            case "aws":
                token = {"X-aws-ec2-metadata-token": self._known}
                return Question("GET", "/latest/meta-data/spot/instance-action", token)
            case "gcp":
                path = "/computeMetadata/v1/instance/preempted"
                return Question("GET", path, {"Metadata-Flavor": "Google"})
            case "azure" if not self._known:
                path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
                return Question("GET", path, {"Metadata": "true"})
            case _:
                path = "/metadata/scheduledevents?api-version=2020-07-01"
                return Question("GET", path, {"Metadata": "true"})

    @property
    def prepares(self) -> bool:
        """The next question only prepares the one after it."""
        return self._cloud != "gcp" and not self._known

    def answered_untrusted(self, status: int, body: bytes) -> str | None:
        """Take the answer to `question`; return what the cloud announces, for people. Raises NoticeError.

        Args:
          status: of HTTP. A redirect is an error: no cloud sends one, and where it leads is not ours.
        """
        if self._cloud == "aws" and self._known:
            if status == 404:
                return None
            if status == 401:
                self._known = ""  # the token is over: another one is asked for
        if status != 200:
            raise NoticeError(f"the metadata server answered with status {status}")
        if len(body) > ANSWER_BYTES_MAX:
            raise NoticeError("the metadata server answered with more than a notice has")
        try:
            text = body.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise NoticeError("the metadata server answered with no text") from error
        if self.prepares:
            if not text.isprintable() or not 1 <= len(text) <= 1024 or " " in text:
                raise NoticeError("the metadata server answered with no token or name")
            self._known = text
            return None
        return {"aws": _aws, "gcp": _gcp, "azure": self._azure}[self._cloud](text)

    def _azure(self, text: str) -> str | None:
        events = _object(text).get("Events")
        if not isinstance(events, list):
            raise NoticeError("the metadata server answered with no list of events")
        for event in events:
            kind = event.get("EventType") if isinstance(event, dict) else None
            if not isinstance(kind, str) or kind not in _AZURE_ENDS:
                continue
            resources = event.get("Resources")
            if isinstance(resources, list) and self._known in resources:
                return f"{kind} not before {_shown(event.get('NotBefore'))}"
        return None


def _aws(text: str) -> str | None:
    notice = _object(text)
    action = notice.get("action")
    if not isinstance(action, str) or action not in _AWS_ACTIONS:
        raise NoticeError("the metadata server announces no action that is known")
    return f"{action} at {_shown(notice.get('time'))}"


def _gcp(text: str) -> str | None:
    if text not in ("TRUE", "FALSE"):
        raise NoticeError("the metadata server answered with neither TRUE nor FALSE")
    return "preempted" if text == "TRUE" else None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoticeError("the metadata server answered with no JSON") from error
    if not isinstance(found, dict):
        raise NoticeError("the metadata server answered with no JSON object")
    return found


def _shown(value: object) -> str:
    return (
        ascii(value)[1:-1][:_SHOWN_MAX]
        if isinstance(value, str) and value
        else "a time it does not name"
    )


def cloud_of_machine(vendor: str, product: str, asset_tag: str) -> Cloud | None:
    """Tell from what the firmware says in which cloud this machine is; None: in none of these.

    Args:
      vendor, product, asset_tag: `sys_vendor`, `product_name` and `chassis_asset_tag` of /sys/class/dmi/id.
    """
    if vendor.strip() == "Amazon EC2":
        return "aws"
    if product.strip() == "Google Compute Engine":
        return "gcp"
    if asset_tag.strip() == "7783-7084-3265-9085-8269-3286-77":
        return "azure"
    return None
