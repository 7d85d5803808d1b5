"""fourstage: AlexNet's four-stage pipeline as services."""

__version__ = "0.1.0"
