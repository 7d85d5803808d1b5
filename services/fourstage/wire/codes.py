"""The code of a lease: who was given a batch can prove it to the trainer, and nobody else can.

The trainer draws a secret for each stream and tells the loader alone. Under it the loader makes a code for each lease,
which the worker passes on with the batch.
"""

import hashlib
import hmac

SECRET_BYTES = CODE_BYTES = 16


def lease_code(secret: bytes, stream: bytes, seq: int, worker: bytes) -> bytes:
    """16 bytes for one batch and one worker: keyed BLAKE2b (RFC 7693) over stream, seq and the worker's ``peer``."""
    text = stream + seq.to_bytes(8, "little") + worker
    return hashlib.blake2b(text, digest_size=CODE_BYTES, key=secret).digest()


def is_code(code: bytes, secret: bytes, stream: bytes, seq: int, worker: bytes) -> bool:
    """Whether the loader has given this batch to that worker; in a time that tells nothing."""
    return hmac.compare_digest(code, lease_code(secret, stream, seq, worker))
