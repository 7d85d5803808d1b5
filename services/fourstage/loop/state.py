"""What brings a loop back to its place in a stream: plain numbers and text, for any checkpoint."""

from collections.abc import Mapping
from typing import Any

from fourstage.errors import CheckpointError
from fourstage.wire.messages import Open

VERSION = 1


def pinned(spec: Open) -> dict[str, int | float | str | bool]:
    """What makes the order and the pixels of a stream; of the ranks only their number."""
    return {
        "fingerprint": spec.fingerprint, "split": spec.split, "view": spec.view.kind, "crop": spec.view.crop,
        "colour_std": spec.view.colour_std, "colour_scale": spec.view.colour_scale,
        "colour_epochs": spec.view.colour_epochs, "crop_positions": spec.view.crop_positions,
        "crop_chunk": spec.view.crop_chunk, "batch_size": spec.batch_size, "remainder": spec.remainder,
        "shuffle": spec.shuffle, "seed": spec.seed, "world": spec.world,
    }  # fmt: skip


def save(spec: Open, *, seq: int, batches_per_epoch: int, identity: bytes, budget: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a loop that has used every batch before ``seq``. budget: what these were charged."""
    epoch, batch = divmod(seq, batches_per_epoch)
    place = {"version": VERSION, "epoch": epoch, "batch": batch, "identity": identity.hex(), "budget": dict(budget)}
    return place | pinned(spec)


def restore(
    state: Mapping[str, Any], spec: Open, *, batches_per_epoch: int, epochs: int, identity: bytes
) -> tuple[int, bytes]:
    """The batch that comes next and the identity that is wanted.

    identity: that of the batches so far, empty where there were none. Raises CheckpointError that names what differs.
    """
    version, epoch, batch = (state.get(name) for name in ("version", "epoch", "batch"))
    if version != VERSION:
        raise CheckpointError(
            f"a state of version {version!r}, this is {VERSION}", hint="it must come from BatchStream.state_dict()"
        )
    mine = pinned(spec)
    different = [name for name in mine if name not in state or state[name] != mine[name]]
    if different:
        theirs = ", ".join(f"{name} = {state.get(name)!r}" for name in different)
        ours = ", ".join(f"{name} = {mine[name]!r}" for name in different)
        raise CheckpointError(
            f"the state was saved with {theirs}, this stream has {ours}",
            hint="construct the stream as the one that saved it",
        )
    if not (isinstance(epoch, int) and isinstance(batch, int)):
        raise CheckpointError(f"the state says epoch {epoch!r}, batch {batch!r}, which are not numbers")
    if not (0 <= epoch < epochs and 0 <= batch < batches_per_epoch):
        raise CheckpointError(f"the state says epoch {epoch}, batch {batch} of {batches_per_epoch}")
    try:
        wanted = bytes.fromhex(state.get("identity", ""))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state's identity is {state['identity']!r}") from error
    if identity and wanted and identity != wanted:
        raise CheckpointError(
            f"the state was saved with pixels of identity {wanted.hex()}, these are {identity.hex()}",
            hint="use the same augmenter.decoder and version of fourstage",
        )
    return epoch * batches_per_epoch + batch, wanted or identity
