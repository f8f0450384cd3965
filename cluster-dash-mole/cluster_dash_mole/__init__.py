"""The mole: reads the hardware of one host and hands snapshots of it on."""

__version__ = "0.1.0"
