"""What is fuzzed, by name."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.campaign import Target
from tests.fuzz.targets.augmenter import AugmenterTarget
from tests.fuzz.targets.codec import CodecTarget
from tests.fuzz.targets.feed import FeedTarget
from tests.fuzz.targets.inbox import InboxTarget
from tests.fuzz.targets.leases import LeasesTarget
from tests.fuzz.targets.loader import LoaderTarget
from tests.fuzz.targets.relay import RelayTarget
from tests.fuzz.targets.side import DoorTarget, SideTarget
from tests.fuzz.targets.taker import TakerTarget

TARGETS: dict[str, Callable[[Path, Random], Target]] = {
    target.name: target
    for target in (
        CodecTarget,
        SideTarget,
        DoorTarget,
        LoaderTarget,
        FeedTarget,
        AugmenterTarget,
        TakerTarget,
        RelayTarget,
        LeasesTarget,
        InboxTarget,
    )
}
