"""The agent that edgepipe sends to a device: standard library only, Python 3.6 or later."""
