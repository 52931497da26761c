"""Questions of users about a house and the assistant's answers; each skill is a kind of turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from edgecosine.lab.zoo.home_state import (
    APPLIANCES,
    DAYS,
    ROOMS,
    SWITCHED,
    House,
    Room,
    clock,
    degrees,
)

Turn = tuple[str, str]


@dataclass(frozen=True)
class Skill:
    """Makes turns of one kind; with `needs_state` they refer to the state in the context."""

    make: Callable[[random.Random, House], Turn]
    needs_state: bool


def _ask_temperature(rng: random.Random, house: House) -> Turn:
    room = rng.choice(house.rooms)
    question = rng.choice((
        f"How warm is it in the {room.name}?",
        f"What is the temperature in the {room.name}?",
        f"Is the {room.name} cold right now?",
    ))  # fmt: skip
    if room.tenths < 180:
        remark = "That is rather cool. I can turn the heating up if you like."
    elif room.tenths > 240:
        remark = "That is quite warm. Opening a window would help."
    else:
        remark = "That is a comfortable temperature, so there is nothing to do."
    return question, f"The {room.name} is at {room.celsius} degrees. {remark}"


def _ask_humidity(rng: random.Random, house: House) -> Turn:
    room = rng.choice(house.rooms)
    question = rng.choice((
        f"What is the humidity in the {room.name}?",
        f"Is the air in the {room.name} too dry?",
        f"Should I air the {room.name}?",
    ))  # fmt: skip
    if room.humidity > 60:
        remark = "That is damp. Please air the room for ten minutes."
    elif room.humidity < 40:
        remark = "That is dry. A bowl of water on the radiator would help."
    else:
        remark = "That is a healthy value, so you can leave the windows closed."
    return question, f"The humidity in the {room.name} is {room.humidity}%. {remark}"


def _switch(rng: random.Random, house: House) -> Turn:
    room: Room = rng.choice(house.rooms)
    wanted = rng.random() < 0.5
    word = "on" if wanted else "off"
    question = rng.choice((
        f"Please turn {word} the {room.device} in the {room.name}.",
        f"Turn the {room.name} {room.device} {word}.",
        f"Can you switch {word} the {room.device} in the {room.name}?",
    ))  # fmt: skip
    if room.on == wanted:
        answer = f"The {room.device} in the {room.name} is already {word}, so I changed nothing."
    else:
        answer = f"Done. The {room.device} in the {room.name} is now {word}; it was {room.switch}."
    room.on = wanted
    return question, answer


def _list_devices(rng: random.Random, house: House) -> Turn:
    wanted = rng.random() < 0.6
    word = "on" if wanted else "off"
    question = rng.choice((
        f"Which devices are {word}?",
        f"What is switched {word} at the moment?",
        f"List everything that is {word}.",
    ))  # fmt: skip
    found = [f"the {r.device} in the {r.name}" for r in house.rooms if r.on == wanted]
    if not found:
        return question, f"No device is {word} at the moment. I checked every room you listed."
    verb = "device is" if len(found) == 1 else "devices are"
    return question, f"{len(found)} {verb} {word}: {', '.join(found)}."


def _compare(rng: random.Random, house: House) -> Turn:
    warm = rng.random() < 0.5
    question = f"Which room is the {'warmest' if warm else 'coldest'}?"
    listed = ", ".join(f"{room.name} {room.celsius}" for room in house.rooms)
    pick = (max if warm else min)(house.rooms, key=lambda room: room.tenths)
    word = "warmest" if warm else "coldest"
    return question, (
        f"The readings are: {listed}. The {word} room is the {pick.name} "
        f"with {pick.celsius} degrees."
    )


def _difference(rng: random.Random, house: House) -> Turn:
    room = rng.choice(house.rooms)
    goal = 10 * rng.randint(18, 23)
    question = rng.choice((
        f"Set the {room.name} to {goal // 10} degrees.",
        f"I would like {goal // 10} degrees in the {room.name}.",
    ))  # fmt: skip
    gap = goal - room.tenths
    verb = "rise" if gap > 0 else "fall"
    return question, (
        f"The {room.name} is at {room.celsius} degrees and the goal is {degrees(goal)} degrees, "
        f"so it has to {verb} by {degrees(abs(gap))} degrees. I have set the thermostat."
    )


def _average(rng: random.Random, house: House) -> Turn:
    question = rng.choice((
        "What is the average humidity?",
        "Can you work out the mean humidity of the rooms?",
    ))  # fmt: skip
    values = [room.humidity for room in house.rooms]
    listed = " + ".join(str(value) for value in values)
    return question, (
        f"The sum is {listed} = {sum(values)}. Divided by {len(values)}, "
        f"the average humidity is about {round(sum(values) / len(values))}%."
    )


def _power(rng: random.Random, house: House) -> Turn:
    if len(house.watts) < 2:
        return _list_devices(rng, house)
    (first, a), (second, b) = house.watts.items()
    question = rng.choice((
        f"How much power do the {first} and the {second} draw together?",
        "What is the total power right now?",
    ))  # fmt: skip
    more = first if a >= b else second
    return question, (
        f"The {first} draws {a} W and the {second} draws {b} W. Together that is {a + b} W. "
        f"The {more} uses more."
    )


def _energy(rng: random.Random, _: House) -> Turn:
    device, watts, hours = rng.choice(APPLIANCES), 100 * rng.randint(1, 20), rng.randint(2, 9)
    question = rng.choice((
        f"How much energy does the {device} use in {hours} hours at {watts} W?",
        f"The {device} runs for {hours} hours at {watts} W. How much energy is that?",
    ))  # fmt: skip
    total = watts * hours
    return question, (
        f"Energy is power times time: {watts} W times {hours} hours is {total} Wh, "
        f"which is {total // 1000}.{total % 1000 // 100} kWh."
    )


def _schedule(rng: random.Random, _: House) -> Turn:
    device, room, day = rng.choice(SWITCHED), rng.choice(ROOMS), rng.choice(DAYS)
    start, length = 15 * rng.randrange(96), 15 * rng.randint(1, 12)
    question = rng.choice((
        f"Run the {device} in the {room} every {day} at {clock(start)} for {length} minutes.",
        f"Every {day} at {clock(start)}, switch on the {room} {device} for {length} minutes.",
    ))  # fmt: skip
    return question, (
        f"I have made a schedule. Every {day} the {device} in the {room} is switched on at "
        f"{clock(start)} and off at {clock(start + length)}, after {length} minutes."
    )


def _timer(rng: random.Random, house: House) -> Turn:
    device, wait = rng.choice(APPLIANCES), 5 * rng.randint(1, 24)
    question = rng.choice((
        f"Start the {device} in {wait} minutes.",
        f"Can the {device} start in {wait} minutes?",
    ))  # fmt: skip
    return question, (
        f"It is {clock(house.minute)} now. I will start the {device} in {wait} minutes, "
        f"at {clock(house.minute + wait)}."
    )


def _remind(rng: random.Random, _: House) -> Turn:
    chore = rng.choice((
        "water the plants", "change the filter", "empty the dehumidifier", "check the smoke alarm",
        "take out the bins", "descale the kettle", "clean the oven", "defrost the freezer",
    ))  # fmt: skip
    day, minute = rng.choice(DAYS), 15 * rng.randrange(28, 88)
    question = f"Remind me to {chore} on {day} at {clock(minute)}."
    return question, (
        f"I will remind you on {day} at {clock(minute)} to {chore}. "
        "You can cancel the reminder at any time."
    )


def _scene(rng: random.Random, house: House) -> Turn:
    question, opening = rng.choice((
        ("Good night.", "Good night."),
        ("I am leaving the house.", "Have a good day."),
        ("We are going to bed.", "Sleep well."),
        ("Nobody is home until the evening.", "Understood."),
    ))  # fmt: skip
    off = [f"the {room.device} in the {room.name}" for room in house.rooms if room.on]
    for room in house.rooms:
        room.on = False
    if not off:
        return question, f"{opening} All devices are already off, and the doors are locked."
    return question, f"{opening} I have turned off {' and '.join(off)}. The doors are locked."


_ADVICE = {
    "How can I save energy in the {}?": (
        "To save energy in the {}, lower the temperature by one degree, switch off devices "
        "that you do not use, and air the room briefly instead of leaving a window open."
    ),
    "The sensor in the {} does not answer.": (
        "The sensor in the {} may have an empty battery. Please replace the battery, wait "
        "one minute, and ask me again."
    ),
    "Why is the {} damp?": (
        "The {} may be damp because warm air meets a cold wall. Air the room twice a day "
        "and keep the door closed while you cook or shower."
    ),
    "When is electricity cheap?": (
        "Electricity is cheapest between 01:00 and 05:00. I can move the dishwasher and the "
        "washing machine to that time."
    ),
}


def _advice(rng: random.Random, _: House) -> Turn:
    room = rng.choice(ROOMS)
    question, answer = rng.choice(tuple(_ADVICE.items()))
    return question.format(room), answer.format(room)


SKILLS = [
    Skill(_ask_temperature, True), Skill(_ask_humidity, True), Skill(_switch, True),
    Skill(_list_devices, True), Skill(_compare, True), Skill(_difference, True),
    Skill(_average, True), Skill(_power, True), Skill(_energy, False), Skill(_schedule, False),
    Skill(_timer, True), Skill(_remind, False), Skill(_scene, True), Skill(_advice, False),
]  # fmt: skip
