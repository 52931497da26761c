"""The state of a generated house, and its description in the context of a dialogue."""

from __future__ import annotations

import random
from dataclasses import dataclass

ROOMS = (
    "kitchen", "living room", "bedroom", "bathroom", "hallway", "office", "garage", "attic",
    "nursery", "dining room", "cellar", "guest room", "laundry room", "studio", "pantry", "porch",
)  # fmt: skip
SWITCHED = (
    "lamp", "ceiling light", "fan", "heater", "radiator", "speaker", "dehumidifier", "air purifier",
    "towel rail", "television", "humidifier", "extractor",
)  # fmt: skip
APPLIANCES = (
    "dishwasher", "washing machine", "dryer", "oven", "boiler", "fridge", "freezer", "heat pump",
    "car charger", "router", "kettle", "aquarium pump",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass
class Room:
    """One room: degrees Celsius in tenths, relative humidity in percent, one switched device."""

    name: str
    tenths: int
    humidity: int
    device: str
    on: bool

    @property
    def celsius(self) -> str:
        return degrees(self.tenths)

    @property
    def switch(self) -> str:
        return "on" if self.on else "off"


@dataclass
class House:
    """The state known to the assistant: minutes since midnight, rooms, watts of two appliances."""

    day: str
    minute: int
    rooms: list[Room]
    watts: dict[str, int]

    def describe(self) -> str:
        parts = [f"It is {clock(self.minute)} on {self.day}."]
        parts += [
            f"{room.name.capitalize()}: {room.celsius} degrees, humidity {room.humidity}%, "
            f"{room.device} {room.switch}."
            for room in self.rooms
        ]
        if self.watts:
            listed = ", ".join(f"{name} {watts} W" for name, watts in self.watts.items())
            parts.append(f"Power: {listed}.")
        return " ".join(parts)


def degrees(tenths: int) -> str:
    """Tenths of a degree as text."""
    return f"{tenths // 10}.{tenths % 10}"


def clock(minute: int) -> str:
    """Minutes since midnight as hh:mm."""
    return f"{minute // 60 % 24:02d}:{minute % 60:02d}"


def random_house(rng: random.Random) -> House:
    """Draw a house with one to four rooms and up to two measured appliances."""
    names = rng.sample(ROOMS, rng.choice((1, 2, 2, 3, 3, 4)))
    rooms = [
        Room(
            name, rng.randint(140, 265), rng.randint(30, 75), rng.choice(SWITCHED),
            rng.random() < 0.5,
        )
        for name in names
    ]  # fmt: skip
    appliances = rng.sample(APPLIANCES, rng.choice((0, 0, 2)))
    watts = {name: 10 * rng.randint(1, 220) for name in appliances}
    return House(rng.choice(DAYS), 5 * rng.randrange(288), rooms, watts)
