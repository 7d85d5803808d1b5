"""Grafana's dashboards as code: what they show is said once, and JSON, tests and pictures are made from it."""
