"""The mathematics: distributions, networks, models, the flow, objectives.

Pure functions of parameters and arrays: this room knows nothing of data sets, files, runs or devices, and imports from
`errors` alone.
"""
