"""What the driver's Xid numbers mean, and what usually helps: for whoever is on duty, in few words."""

XIDS = {
    13: (
        "the program made the GPU's engine fail",
        "look for a bug in the program; if any program does it, test the GPU",
    ),
    31: ("the program used memory that is not its own", "look for a bug in the program"),
    32: ("commands for the GPU arrived damaged", "if it comes again, check the PCIe link, then the driver"),
    38: ("the firmware failed", "update the driver; if it comes again, test the GPU"),
    43: ("a program failed and was stopped", "look for a bug in the program; the GPU is well"),
    44: ("a fault while programs were switched", "if it comes again, update the driver"),
    45: ("a program was cleaned up after it was ended or failed", "nothing; look at the Xid before it, if any"),
    48: ("uncorrectable memory error", "drain the node and reset the GPU; if it comes again, replace it"),
    61: ("a controller in the GPU halted", "reset the GPU; if it comes again, replace it"),
    62: ("a controller in the GPU halted", "reset the GPU; if it comes again, replace it"),
    63: ("a bad part of the memory is put out of use", "reset the GPU when it is idle, so that it takes effect"),
    64: ("a bad part of the memory could not be put out of use", "reset the GPU; if it comes again, replace it"),
    69: ("the program made the GPU's engine fail", "look for a bug in the program"),
    74: ("NVLink error", "reset the GPUs; if it comes again, check the link, the bridge or the switch"),
    79: ("the GPU has fallen off the bus", "reboot; if it comes again, check power, cooling and seat, then replace it"),
    92: ("many corrected memory errors", "watch it; if they go on, replace the GPU"),
    94: ("memory error, kept to one program", "that program has failed; reset the GPU when it is idle"),
    95: ("memory error, not kept to one program", "all programs on it have failed; drain the node, reset the GPU"),
    109: ("a program could not be switched in time", "look at the program; if it comes again, update the driver"),
    110: ("security fault", "reboot; if it comes again, replace the GPU"),
    119: ("the GPU's own processor does not answer", "reset the GPU or reboot; update the driver"),
    120: ("the GPU's own processor failed", "reset the GPU or reboot; update the driver"),
    121: ("error on the link between CPU and GPU, corrected", "if it comes again, have the board checked"),
    140: ("memory error that was not mended", "drain the node and reset the GPU"),
    143: ("the GPU could not be started", "reboot; if it comes again, replace it"),
    145: ("NVLink error", "reset the GPUs; if it comes again, check the link, the bridge or the switch"),
    149: ("NVLink error", "reset the GPUs; if it comes again, check the link, the bridge or the switch"),
    154: ("the GPU asks for help to recover", "nvidia-smi -q names it: reset, reboot, or drain and reset"),
}
"""Meaning and usual remedy of the common numbers."""


def xid_text(code: int) -> str:
    """Return an Xid in words."""
    if code not in XIDS:
        return f"Xid {code}: see NVIDIA's list of Xid errors"
    meaning, remedy = XIDS[code]
    return f"Xid {code}: {meaning}: {remedy}"
