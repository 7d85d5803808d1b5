"""One stream for both columns of a network: the first column's trainer owns it and passes on where each batch lies.

Both map the same arenas, so pixels are read where the augmenter wrote them and a frame carries a few kilobytes. A
slot is free when both have read it. Messages are the wire's, in ``channel``'s frames:

::

    first -> second   OPEN      what was asked for, so that both trainers mean the same stream
                      OPENED    payload: the mean image
                      BATCH     payload: samples, draws, the arenas in use, inline the pixels;
                                ``session`` is the arena's number, a new one's descriptor comes along
                      FAILED    the stream cannot go on
                      CLOSE     nothing comes any more
    second -> first   HOLDS     all that it still reads, after every release
                      CLOSE     it takes nothing any more

The arenas in use are named in full every time, 3 x uint64 each: number, slots, bytes of a slot. The second column
unmaps those that are not named, so that nothing grows while augmenters come and go.
"""

from fourstage.trainer.relay.batches import Batches
from fourstage.trainer.relay.channel import connect, listen
from fourstage.trainer.relay.relayed import RelayedInbox
from fourstage.trainer.relay.relaying import RelayingInbox

__all__ = ["Batches", "RelayedInbox", "RelayingInbox", "connect", "listen"]
