"""The verdict: generated captures measured beside real ones.

::

    folders ── sessions ──> Session (arrays, TCP findings) ──┬─ compare   metrics and distances by label
                                                             ├─ classify  label test, discriminator, copies
               files ─────> referees (capinfos, tshark) ─────┴─ report ──> tables, report.json, report.md

Every score stands beside its floor: the same score of a second set of real captures against the real ones.
"""
