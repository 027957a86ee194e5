"""The way to a device and the work there: transports, upload, the agent, the embedded device."""
