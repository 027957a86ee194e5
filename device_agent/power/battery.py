"""A battery's own gauge (docs.kernel.org/power/power_supply_class); only while it discharges."""

from device_agent.machine import Machine
from device_agent.power.source import Source, Unavailable, read_number


def open_source(machine: Machine) -> Source:
    """Opens the first battery that discharges.

    Raises:
        Unavailable: There is no battery, or a charger feeds the device, or the gauge cannot be read.
    """
    states = []
    for folder in machine.glob("/sys/class/power_supply/*"):
        if machine.text(folder + "/type") != "Battery" or machine.text(folder + "/scope") == "Device":
            continue  # scope "Device" is the battery of a mouse or the like
        states.append(machine.text(folder + "/status"))
        if states[-1] == "Discharging":
            return _open_battery(machine, folder)
    if not states:
        raise Unavailable("no battery under /sys/class/power_supply")
    raise Unavailable(
        "the battery is not discharging but {}: unplug the charger".format(states[0] or "unknown")
    )


def _open_battery(machine: Machine, folder: str) -> Source:
    status = folder + "/status"
    power = machine.path(folder + "/power_now")
    volts = machine.path(folder + "/voltage_now")
    amperes = machine.path(folder + "/current_now")
    has_power = machine.exists(folder + "/power_now")

    def read() -> float:
        if machine.text(status) != "Discharging":
            raise ValueError("the charger was plugged in")
        # power_now is in uW, voltage_now in uV, current_now in uA; some drivers count discharge as negative.
        power_mw = read_number(power) / 1e3 if has_power else read_number(volts) * read_number(amperes) / 1e9
        return abs(power_mw)

    try:
        read()
    except (OSError, ValueError) as error:
        raise Unavailable(str(error)) from None
    return Source(
        name="battery",
        kind="sampled",
        coverage="board",
        rails=(folder.rsplit("/", 1)[1],),
        period_ns=500000000,
        read=read,
        note="the whole device, its screen included; gauges often update only every few seconds",
    )
