"""What the loader says of itself: to trainers with its heartbeat, to whoever scrapes its metrics."""

from collections.abc import Mapping

from fourstage.loader.clients import Client, Clients
from fourstage.loader.leases import DEATHS_BEFORE_POISON, Leases
from fourstage.loader.streams import LoaderStream
from fourstage.telemetry import StageMeter, Telemetry
from fourstage.wire.messages import Stages


class Report:
    """Looks at the books; changes nothing."""

    def __init__(
        self,
        telemetry: Telemetry,
        meter: StageMeter,
        leases: Leases,
        streams: Mapping[bytes, LoaderStream],
        clients: Clients,
    ) -> None:
        self._telemetry = telemetry
        self._meter = meter
        self._leases = leases
        self._streams = streams
        self._clients = clients

    def stages(self, client: Client) -> Stages:
        """What a trainer's streams look like from here."""
        uuids = [uuid for uuid, stream in self._streams.items() if stream.client == client.uuid]
        counts = [self._leases.counts(uuid) for uuid in uuids]
        return Stages(
            load=self._meter.usage,
            transform=self._clients.work(),
            augmenters=len(self._clients.augmenters()),
            leased=sum(leased for leased, _ in counts),
            loaded=sum(loaded for _, loaded in counts),
            window=max((self._leases.window(uuid) for uuid in uuids), default=0),
            redispatched=sum(self._leases.redispatched(uuid) for uuid in uuids),
            waiting=self._why_waiting(uuids),
        )

    def gauges(self) -> None:
        """How full everything is, for the metrics."""
        gauge, streams = self._telemetry.gauge, self._streams.values()
        counts = [self._leases.counts(uuid) for uuid in self._streams]
        slots, free = sum(stream.arena.slots for stream in streams), sum(len(stream.free) for stream in streams)
        gauge("fourstage_queue_items", "leased").set(sum(leased for leased, _ in counts))
        gauge("fourstage_queue_items", "loaded").set(sum(loaded for _, loaded in counts))
        room = sum(min(self._leases.window(uuid), stream.arena.slots) for uuid, stream in self._streams.items())
        gauge("fourstage_queue_capacity_items", "loaded").set(room)
        held = sum(map(self._leases.credits, self._streams))
        gauge("fourstage_queue_capacity_items", "leased").set(held)
        gauge("fourstage_window_batches").set(max(map(self._leases.window, self._streams), default=0))
        gauge("fourstage_streams").set(len(streams))
        gauge("fourstage_arena_bytes").set(sum(stream.arena.slots * stream.arena.slot_bytes for stream in streams))
        gauge("fourstage_slots", "free").set(free)
        gauge("fourstage_slots", "used").set(slots - free)

    def peers(self) -> None:
        """Who is connected, and who is missed, for the metrics."""
        gauge = self._telemetry.gauge
        gauge("fourstage_trainers_lost").set(len(self._clients.trainers_lost))
        gauge("fourstage_peers", "augmenter").set(len(self._clients.augmenters()))
        gauge("fourstage_peers", "trainer").set(len(self._clients.having("trainer")))

    def _why_waiting(self, uuids: list[bytes]) -> str:
        for uuid in uuids:
            stream, owner = self._streams[uuid], self._streams[uuid].spec.worker
            workers = [each for each in self._clients.having("augmenter") if self._clients.may_serve(each, stream)]
            if not workers:
                return "the trainer's own decoder is not connected" if owner else "no augmenter is connected"
            if all(self._leases.refuses(worker.uuid, uuid) for worker in workers):
                return "every augmenter that is here was refused: the loader's log says why"
            if not any(self._leases.serves(worker.uuid, uuid) for worker in workers):
                pinned = self._leases.identity(uuid).hex()
                return f"no augmenter makes the pixels of this run ({pinned}): another decoder or version"
            if (seq := self._leases.suspected(uuid)) is not None:
                return f"batch {seq} has killed {DEATHS_BEFORE_POISON} workers: its samples are tried one by one"
        return ""
