"""The commands of `pose`, one file per topic. Each parses its arguments, calls one room and prints what came back."""
