"""A simulated fleet: plausible machines that report like real ones.

`fleet` makes machines, deterministic by seed; `sending` delivers their heartbeats; `command` runs the fleet.
"""
