"""The one exception a command raises for what its user can mend."""


class CommandError(Exception):
    """Printed as ``lhkernels COMMAND: error: MESSAGE``; the command exits with status 2."""
