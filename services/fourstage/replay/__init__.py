"""Batches of a run made again from its store and settings alone, and two runs compared by their receipts."""
