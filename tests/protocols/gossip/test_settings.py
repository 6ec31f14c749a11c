"""The `[gossip]` table."""

import pytest

from protocols.gossip.settings import GossipSpec
from protocols.schema import SchemaError, decode


def test_the_defaults_are_a_valid_table() -> None:
    assert decode(GossipSpec, {}) == GossipSpec()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("neighbours", "star"),
        ("degree", 0),
        ("target", "max"),
        ("own_share", 1.1),
        ("buffer_share", 0.0),
        ("push_share", 0.0),
        ("variance_factor", 1.0),
        ("average_after_batches", 0),
        ("unknown", 1),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_path(key: str, value: object) -> None:
    with pytest.raises(SchemaError) as raised:
        decode(GossipSpec, {key: value})
    assert raised.value.path == key


@pytest.mark.parametrize(("share", "parts"), [(1.0, 1), (0.5, 2), (0.25, 4), (0.3, 3), (0.01, 100)])
def test_the_share_gives_the_number_of_parts(share: float, parts: int) -> None:
    assert GossipSpec(push_share=share).parts == parts


def test_one_model_at_least_is_waited_for() -> None:
    assert GossipSpec(buffer_share=0.1).enough(3) == 1
    assert GossipSpec(buffer_share=0.5).enough(5) == 3
    assert GossipSpec().enough(0) == 1
