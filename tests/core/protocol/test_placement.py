from __future__ import annotations

import pytest

from wanspec.core.protocol.placement import ANYWHERE, MAX_LABEL_LENGTH, MAX_LABELS, Placement, check_labels, repeated_key
from wanspec.errors import ConfigError


@pytest.mark.parametrize(
    ("wanted", "carried", "is_allowed"),
    [
        ((), (), True),
        ((), ("region=eu",), True),
        (("region=eu",), ("gpu=t4", "region=eu"), True),
        (("region=eu",), ("region=us",), False),
        (("region=eu",), (), False),
        (("region=eu", "region=uk"), ("region=uk",), True),
        (("region=eu", "region=uk", "gpu=t4"), ("region=uk",), False),
        (("region=eu", "gpu=t4"), ("gpu=t4", "region=eu", "site=x"), True),
    ],
)
def test_values_of_one_key_are_alternatives_and_every_key_counts(
    wanted: tuple[str, ...], carried: tuple[str, ...], *, is_allowed: bool
) -> None:
    assert Placement(labels=wanted).allows(carried) is is_allowed
    assert not Placement(offload=False, labels=wanted).allows(carried)


def test_anywhere_is_anywhere() -> None:
    assert ANYWHERE.allows(("region=eu",))


def test_labels_are_put_in_order_and_named_once() -> None:
    assert check_labels(["region=eu", "gpu=t4", "region=eu"]) == ("gpu=t4", "region=eu")


@pytest.mark.parametrize("label", ["", "eu", "=eu", "region=", "region:eu", "region=e u", "ré=1", "a=b\n", "a=" + "b" * MAX_LABEL_LENGTH])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        check_labels([label])


def test_labels_are_bounded_in_number() -> None:
    with pytest.raises(ConfigError, match="MAX_LABELS"):
        check_labels([f"key{number}=1" for number in range(MAX_LABELS + 1)])


def test_a_key_with_two_values_is_found() -> None:
    assert repeated_key(["a=1", "b=1", "a=2"]) == "a"
    assert not repeated_key(["a=1", "b=1"])
