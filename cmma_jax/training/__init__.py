"""From a configuration to a finished run: steps, devices, checkpoints, records.

What this room imports: `errors`, `models`, `data`.
"""
