"""Speculation stays on where it is faster, and is probed again where it was slower."""

from __future__ import annotations

import pytest

from edgecosine.balance.speculation_switch import (
    FEWEST_PASSES,
    FIRST_REST,
    FIRST_STRETCH,
    LONGEST_REST,
    PROBE_PASSES,
    SpeculationSwitch,
)

PLAIN_S = 0.010


def play(
    switch: SpeculationSwitch, passes: int, speculating_per_s: float, requests: int = 4
) -> int:
    """Observe passes at these speeds; returns how many of them were plain."""
    num_plain = 0
    for _ in range(passes):
        if switch.speculates(requests):
            switch.observe(requests, 100, 100 - requests, 100 / speculating_per_s, PLAIN_S)
        else:
            num_plain += 1
            switch.observe(requests, requests, 0, PLAIN_S, PLAIN_S)
    return num_plain


@pytest.mark.parametrize("gain", [1.02, 1.5, 4.0])
def test_faster_speculation_is_never_switched_off(gain: float) -> None:
    assert play(SpeculationSwitch(), 1000, gain * 4 / PLAIN_S) == 0


@pytest.mark.parametrize("gain", [0.2, 0.5, 0.9, 0.94])
@pytest.mark.parametrize("requests", [2, 4, 16])
def test_trials_of_slower_speculation_cost_a_hundredth(gain: float, requests: int) -> None:
    """After a cold start, whose first trial is paid back first."""
    switch, lost_s, total_s = SpeculationSwitch(), 0.0, 0.0
    plain_per_s = requests / PLAIN_S
    for number in range(40000):
        tokens = requests
        speed = gain * plain_per_s if switch.speculates(requests) else plain_per_s
        if number >= 10000:
            total_s += tokens / speed
            lost_s += tokens / speed - tokens / plain_per_s
        switch.observe(requests, tokens, tokens // 2, tokens / speed, PLAIN_S)
    assert 0.0 < lost_s <= 0.01 * total_s


def test_trial_that_was_better_than_plain_decoding_goes_on_once_that_was_measured() -> None:
    """The estimate of plain decoding leaves out the event loop, which here doubles its time."""
    switch, num_plain = SpeculationSwitch(), 0
    for _ in range(FIRST_STRETCH):
        if switch.speculates(4):
            switch.observe(4, 6, 2, 2 * PLAIN_S, PLAIN_S)
        else:
            num_plain += 1
            switch.observe(4, 4, 0, 2 * PLAIN_S, PLAIN_S)
    assert num_plain == PROBE_PASSES


@pytest.mark.parametrize("noise", [0.8, 1.0, 1.25])
def test_speculation_whose_drafts_are_hardly_accepted_is_not_kept_for_noise(noise: float) -> None:
    """A trial without drafts may by chance be quicker than plain decoding was."""
    switch, num_plain = SpeculationSwitch(), 0
    for _ in range(10000):
        if switch.speculates(8):
            switch.observe(8, 8, 0, PLAIN_S / noise, PLAIN_S)
        else:
            num_plain += 1
            switch.observe(8, 8, 0, PLAIN_S, PLAIN_S)
    assert num_plain >= 0.97 * 10000


def test_trial_on_a_machine_that_got_quicker_does_not_count_as_faster() -> None:
    """Other load slowed all passes down until the trial began."""
    switch, num_plain, slow = SpeculationSwitch(), 0, 10
    while not (num_plain and switch.speculates(8)):
        if not switch.speculates(8):
            num_plain += 1
        switch.observe(8, 8, 0, slow * PLAIN_S, slow * PLAIN_S)
    num_plain = 0
    for _ in range(1000):
        if switch.speculates(8):
            switch.observe(8, 9, 1, 1.5 * PLAIN_S, PLAIN_S)
        else:
            num_plain += 1
            switch.observe(8, 8, 0, PLAIN_S, PLAIN_S)
    assert num_plain >= 0.95 * 1000


@pytest.mark.parametrize("gain", [0.2, 0.5, 0.9])
def test_slower_speculation_is_probed_ever_less_often(gain: float) -> None:
    switch = SpeculationSwitch()
    first = play(switch, 1000, gain * 4 / PLAIN_S)
    later = play(switch, 10000, gain * 4 / PLAIN_S)
    assert first >= 0.8 * 1000
    assert later >= 0.99 * 10000


def test_speculation_that_pays_again_is_found_within_one_rest() -> None:
    switch = SpeculationSwitch()
    play(switch, 20 * LONGEST_REST, 0.5 * 4 / PLAIN_S)
    assert play(switch, 2 * LONGEST_REST, 2.0 * 4 / PLAIN_S) <= LONGEST_REST
    assert switch.speculates(4)


def test_one_bad_probe_after_good_rounds_costs_a_short_rest() -> None:
    switch = SpeculationSwitch()
    play(switch, 100 * PROBE_PASSES, 2.0 * 4 / PLAIN_S)
    bad = 0
    while switch.speculates(4):
        switch.observe(4, 1, 0, 1.0, PLAIN_S)
        bad += 1
        assert bad < 10
    assert play(switch, 4 * FIRST_REST, 2.0 * 4 / PLAIN_S) <= 2 * FIRST_REST


def test_switch_does_not_apply_to_a_single_request() -> None:
    switch = SpeculationSwitch()
    assert play(switch, 1000, 0.1 / PLAIN_S, requests=1) == 0


def test_numbers_of_requests_are_judged_separately_and_new_ones_by_the_nearest() -> None:
    switch = SpeculationSwitch()
    play(switch, 100, 2.0 * 2 / PLAIN_S, requests=2)
    play(switch, 100, 0.5 * 4 / PLAIN_S, requests=4)
    assert switch.speculates(2)
    assert not switch.speculates(4)
    assert not switch.speculates(6)
    assert switch.speculates(3)
    assert "4 requests" in switch.reason(4)


def test_probe_that_is_clearly_slower_ends_early() -> None:
    switch, num_probed = SpeculationSwitch(), 0
    while switch.speculates(4):
        play(switch, 1, 0.5 * 4 / PLAIN_S)
        num_probed += 1
    assert num_probed < PROBE_PASSES


def test_unmeasured_number_follows_the_nearest_one() -> None:
    switch = SpeculationSwitch()
    play(switch, 200, 0.5 * 8 / PLAIN_S, requests=8)
    assert not switch.speculates(8)
    assert not switch.speculates(7)
    assert not switch.speculates(5)
    assert switch.speculates(2)


def test_better_drafters_that_do_not_help_cause_ever_fewer_probes() -> None:
    switch = SpeculationSwitch()
    num_plain = 0
    for _ in range(10000):
        switch.reconsider()
        num_plain += play(switch, 1, 0.5 * 4 / PLAIN_S)
    assert num_plain >= 0.95 * 10000


def test_better_drafters_cause_a_probe_at_once() -> None:
    switch = SpeculationSwitch()
    play(switch, 20 * LONGEST_REST, 0.5 * 4 / PLAIN_S)
    while switch.speculates(4):
        play(switch, 1, 0.5 * 4 / PLAIN_S)
    switch.reconsider()
    assert play(switch, 1000, 2.0 * 4 / PLAIN_S) == 0


def test_reason_names_no_speeds_that_were_not_measured() -> None:
    assert SpeculationSwitch().reason(1) == "no plan paid lately"


def test_passes_before_the_first_draft_is_accepted_do_not_judge_speculation() -> None:
    """Requests that wait for their first drafts miss passes whose tokens the drafts bring later."""
    switch, num_plain = SpeculationSwitch(), 0
    for number in range(4 * PROBE_PASSES):
        is_waiting = number < FEWEST_PASSES
        num_plain += not switch.speculates(4)
        switch.observe(4, 1 if is_waiting else 6, 0 if is_waiting else 2, PLAIN_S, PLAIN_S)
    assert not num_plain


def test_trial_is_charged_for_the_passes_before_its_first_draft() -> None:
    """Its drafts cost little themselves, and all requests waited for them."""
    switch, num_trials, age = SpeculationSwitch(), 0, 0
    for _ in range(2000):
        is_speculating = switch.speculates(4)
        age = age + 1 if is_speculating else 0
        num_trials += age == 1
        is_waiting = is_speculating and age < FEWEST_PASSES
        tokens = 0 if is_waiting else 4 - is_speculating
        switch.observe(4, tokens, int(is_speculating and not is_waiting), PLAIN_S, PLAIN_S)
    # Each costs eight passes, or 800 plain ones.
    assert num_trials <= 3


@pytest.mark.parametrize(("requests", "num_passes"), [(4, PROBE_PASSES), (16, FEWEST_PASSES)])
def test_slower_speculation_of_many_requests_is_judged_earlier(
    requests: int, num_passes: int
) -> None:
    """Passes of few requests differ much."""
    switch, speculated = SpeculationSwitch(), 0
    while switch.speculates(requests):
        speculated += 1
        switch.observe(requests, requests, 1, PLAIN_S / 0.7, PLAIN_S)
    assert speculated == num_passes
