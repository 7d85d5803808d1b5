"""What a trainer asks of the loader: the training stream and the validation stream."""

from fourstage.settings import Settings
from fourstage.trainer.layout import Layout
from fourstage.views import view_of
from fourstage.wire.messages import Open


def train_request(settings: Settings, place: Layout, *, start: int, fingerprint: str, identity: bytes) -> Open:
    """The OPEN of the training stream: this replica's share of every batch."""
    return Open(
        stream=bytes(16), split=settings.train_split, view=view_of(settings, "random"),
        batch_size=settings.batch_size, remainder=settings.remainder, shuffle=True, seed=settings.seed,
        rank=place.replica, world=place.replicas, start=start, epochs=settings.train.epochs,
        end=settings.train.max_steps or 0, window=0 if settings.window == "auto" else settings.window,
        fingerprint=fingerprint, identity=identity, transport=settings.transport, receiver="", side="", worker=b"",
        on_corrupt=settings.on_corrupt, secret=bytes(16),
    )  # fmt: skip


def validation_request(settings: Settings, place: Layout, fingerprint: str, *, epochs: int) -> Open:
    """The OPEN of the validation stream: central crops in the split's own order, again and again."""
    return Open(
        stream=bytes(16), split=settings.validation_split, view=view_of(settings, "centre"),
        batch_size=settings.validation_batch or settings.batch_size, remainder="keep", shuffle=False,
        seed=settings.seed, rank=place.replica, world=place.replicas, start=0, epochs=epochs, end=0, window=0,
        fingerprint=fingerprint, identity=b"", transport=settings.transport, receiver="", side="", worker=b"",
        on_corrupt=settings.on_corrupt, secret=bytes(16),
    )  # fmt: skip
