"""What this machine gives: half a minute of measurement, and what follows from it for a rate of training."""
