"""netssmd: live, labelled, realistic network traffic from a Mamba-2 state-space model."""

from netssmd.freshness import prefer_sources_when_stale

__version__ = "0.1.0"

prefer_sources_when_stale(__file__.rpartition("/")[0])
