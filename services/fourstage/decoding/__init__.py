"""Decoding in the trainer (``decode = "device"``): who takes the leases, and who decodes what they bring.

It knows augmenter and trainer, which do not know one another; the trainer is handed what is made here.
"""

import socket
from collections.abc import Callable

import numpy as np
import torch

from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.transform import identity
from fourstage.decoding.gpu import GpuDecoder, gpu_identity, nvimagecodec
from fourstage.decoding.host import HostDecoder
from fourstage.decoding.taker import Allocate, JpegTaker
from fourstage.errors import SettingsError
from fourstage.settings import Settings
from fourstage.telemetry import Telemetry
from fourstage.trainer.encoded import PixelDecoder
from fourstage.trainer.upload import pinned
from fourstage.wire.security import load
from fourstage.wire.sockets import Waiter


class DeviceDecoding:
    """Decodes where the copy stage puts its batches: on the CPU as augmenters do, on a GPU by nvImageCodec."""

    def __init__(self, settings: Settings, device: torch.device, *, name: str, telemetry: Telemetry) -> None:
        """device: that of training, as ``choose_device`` prepared it. name: the trainer's.

        Raises SettingsError for what a GPU cannot do, and where nvImageCodec is missing.
        """
        self._settings = settings
        self._name = f"{name}-decoder@{socket.gethostname()}"
        self._telemetry = telemetry
        self._allocate: Allocate = lambda size: np.empty(size, np.uint8)
        self._make: Callable[[], PixelDecoder]
        # Without a network nothing goes to a device: batches are made on the host, and looked at by nobody.
        if device.type == "cpu" or settings.model.name == "none":
            self._make = lambda: HostDecoder(make_decoder(settings.augmenter.decoder))
            self.identity = identity(make_decoder(settings.augmenter.decoder))
            return
        if settings.receipt == "pixels":
            raise SettingsError(
                "receipt = 'pixels' with decode = 'device' on a GPU: the pixels never lie where they are digested",
                hint="--receipt keys, or decode = 'augmenter'",
            )
        if settings.augmenter.decoder != "auto":
            raise SettingsError(
                f"augmenter.decoder = {settings.augmenter.decoder!r} with decode = 'device' on a GPU",
                hint="nvImageCodec decodes there: leave it out",
            )
        self._allocate = lambda size: pinned((size,), torch.uint8).numpy()
        self._make = lambda: GpuDecoder(nvimagecodec(device))
        self.identity = gpu_identity(nvimagecodec(device))

    def taker(self, waiter: Waiter) -> JpegTaker:
        """The one that takes leases; its socket is added to the feed's waiter."""
        settings = self._settings
        return JpegTaker(
            settings.loader.address,
            name=self._name,
            identity=self.identity,
            slots=settings.augmenter.slots,
            memory=settings.augmenter.memory,
            allocate=self._allocate,
            waiter=waiter,
            telemetry=self._telemetry,
            trainers=settings.loader.trainers,
            security=load(settings.keys, "trainer"),
        )

    def decoder(self) -> PixelDecoder:
        """A new decoder, for one copy stage."""
        return self._make()
