"""Raw Philox4x64-10 words: the only source of randomness of order and draws.

Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a word is a pure
function of key and counter, so any process can make the words of any sample without making those before it. NumPy
promises a stable stream for the raw words of a bit generator, but not for its distributions (NEP 19).
"""

import numpy as np
from numpy.typing import NDArray

WORDS_PER_BLOCK = 4

DRAWS = 0
"""Domain of a sample's draws: block p belongs to the sample at position p of the epoch."""
ORDER = 1
"""Domain of an epoch's order: word i ranks sample i."""


def words(seed: int, epoch: int, domain: int, first_block: int, blocks: int) -> NDArray[np.uint64]:
    """Words of consecutive blocks: uint64 (blocks, 4).

    Block b is Philox4x64-10 of the key (seed, epoch) and the 256-bit counter (b + 1, 0, 0, domain), least
    significant word first.
    """
    if blocks == 0:
        return np.empty((0, WORDS_PER_BLOCK), np.uint64)
    # numpy increments the counter before it makes a block, hence b and not b + 1.
    generator = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([first_block, 0, 0, domain], np.uint64)
    )
    return generator.random_raw(blocks * WORDS_PER_BLOCK).reshape(blocks, WORDS_PER_BLOCK)
