"""The code of a lease: who was given a batch can prove it, and nobody else can.

The trainer draws a secret for each stream and tells the loader alone. Under it the loader makes a code for each lease.
The worker shows it to the trainer with the batch, and to a loader that has forgotten the lease. It covers the samples,
so keys and labels are those that the loader has read, and the worker's identity, so the first batch of a stream
cannot pin it to other pixels than the loader's.
"""

import hashlib
import hmac

SECRET_BYTES = CODE_BYTES = 16


def lease_code(
    secret: bytes, *, stream: bytes, seq: int, worker: bytes, identity: bytes, samples: bytes | memoryview
) -> bytes:
    """16 bytes for one batch and one worker: keyed BLAKE2b (RFC 7693).

    worker: its ``peer``, 16 bytes; identity: at most 32; samples: the SAMPLES payload
    """
    code = hashlib.blake2b(stream + seq.to_bytes(8, "little") + worker, digest_size=CODE_BYTES, key=secret)
    code.update(bytes((len(identity),)) + identity)
    code.update(samples)
    return code.digest()


def equal(code: bytes, other: bytes) -> bool:
    """Whether two codes are the same, in a time that tells nothing."""
    return hmac.compare_digest(code, other)
