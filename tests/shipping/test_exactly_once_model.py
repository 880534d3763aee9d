"""Exactly once, whatever happens and whenever: a model of disk, applications and BigQuery.

The real ledger, follower and transport run on a disk in memory that knows what a kill and a loss of
power leave, against a model of committed streams. Under ``spool_sync="full"`` every event whose
call returned is stored exactly once, or is a dead letter if BigQuery refuses it. Under ``"normal"``
a loss of power may take events that were not forced; nothing is ever stored twice.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from exactly_once import FAULTS, Application, FakeStreams, Shipper
from fake_disk import FakeDisk, Killed

SOAK = float(os.environ.get("LORC_EVENTLOG_SOAK", "0"))


class World:
    """What there is, and what must hold in the end."""

    def __init__(self, *, durable: bool) -> None:
        self.disk = FakeDisk()
        self.streams = FakeStreams()
        self.dead_letters: list[str] = []
        self.good: set[str] = set()
        self.bad: set[str] = set()
        self.started: set[str] = set()
        self._durable = durable
        self._application = Application(self.disk, durable=durable)
        self._shipper: Shipper | None = None

    def log(self, count: int, *, poison: bool) -> None:
        at = self.disk.kill_at, self.disk.fail_at  # kills and errors are for the shipper
        self.disk.kill_at = self.disk.fail_at = None
        for _ in range(count):
            number = f"event {len(self.started)}"
            self.started.add(number)
            try:
                self._application.append(number, **({"poison": True} if poison else {}))
            except OSError:  # the disk is full
                self._application.close_segment()
            else:
                (self.bad if poison else self.good).add(number)
        self.disk.kill_at, self.disk.fail_at = at

    def close_segment(self) -> None:
        self._application.close_segment()

    def ship(self, limit: int) -> bool:
        try:
            if self._shipper is None:
                self._shipper = Shipper(self.disk, self.streams, self.dead_letters)
            return self._shipper.step(limit)
        except OSError:  # it cannot begin
            self._shipper = None
            return False
        except Killed:
            self.disk.kill_at = None
            self.kill()
            return False

    def kill(self) -> None:
        if self._shipper is not None:
            self.disk.kill(self._shipper)
            self._shipper = None

    def lose_power(self, rng: random.Random) -> None:
        self.kill()
        self.disk.lose_power(lambda: rng.random() < 0.5)
        self._application = Application(self.disk, durable=self._durable)

    def settle_and_check(self) -> None:
        self.disk.kill_at = self.disk.fail_at = None
        self.disk.is_full = False
        self.streams.faults.clear()
        self.close_segment()
        for _ in range(500):
            if self.ship(5):
                break
        else:
            pytest.fail("the shipper does not get to an end")
        self.streams.deliver_late()
        stored = self.streams.stored()
        assert [number for number, times in stored.items() if times > 1] == []
        assert stored.keys() <= self.started
        assert stored.keys() & self.bad == set()
        if self._durable:
            assert self.good - stored.keys() == set()
            assert self.bad - set(self.dead_letters) == set()
        assert [name for name in self.disk.names if name.endswith(".ship")] == []


class Machine(RuleBasedStateMachine):
    """Any order of calls, faults, kills and losses of power."""

    @initialize(durable=st.booleans())
    def begin(self, durable: bool) -> None:
        self.world = World(durable=durable)

    @rule(count=st.integers(1, 5), poison=st.sampled_from([False, False, False, True]))
    def log(self, count: int, poison: bool) -> None:
        self.world.log(count, poison=poison)

    @rule()
    def close_segment(self) -> None:
        self.world.close_segment()

    @rule(limit=st.integers(1, 6))
    def ship(self, limit: int) -> None:
        self.world.ship(limit)

    @rule(fault=st.sampled_from(FAULTS))
    def break_the_next_request(self, fault: str) -> None:
        self.world.streams.faults.append(fault)

    @rule()
    def deliver_late(self) -> None:
        self.world.streams.deliver_late()

    @rule()
    def kill(self) -> None:
        self.world.kill()

    @rule(changes=st.integers(1, 12))
    def kill_later(self, changes: int) -> None:
        self.world.disk.kill_at = self.world.disk.changes + changes

    @rule(changes=st.integers(1, 12))
    def fail_later(self, changes: int) -> None:
        self.world.disk.fail_at = self.world.disk.changes + changes

    @rule(rng=st.randoms(use_true_random=False))
    def lose_power(self, rng: random.Random) -> None:
        self.world.lose_power(rng)

    @rule(is_full=st.booleans())
    def fill_the_disk(self, is_full: bool) -> None:
        self.world.disk.is_full = is_full

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle_and_check()


def test_any_order_of_calls_faults_kills_and_losses_of_power_stores_each_event_once() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(os.environ.get("LORC_EVENTLOG_EXAMPLES", "150")) + int(30 * SOAK),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def scenario(
    seed: int, kill_at: int | None, *, durable: bool, power: bool, fail_at: int | None = None
) -> World:
    """Log, ship and break in an order that ``seed`` decides; end at change ``kill_at``."""
    rng = random.Random(seed)
    world = World(durable=durable)
    world.disk.kill_at, world.disk.fail_at = kill_at, fail_at
    for _ in range(rng.randint(15, 40)):
        draw = rng.random()
        if draw < 0.35:
            world.log(rng.randint(1, 5), poison=rng.random() < 0.1)
        elif draw < 0.45:
            world.close_segment()
        elif draw < 0.55:
            world.streams.faults.append(rng.choice(FAULTS))
        elif draw < 0.6:
            world.streams.deliver_late()
        else:
            world.ship(rng.randint(1, 6))
        if kill_at is not None and world.disk.kill_at is None and power:
            power = False
            world.lose_power(rng)
    return world


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("seed", range(2 + int(SOAK / 10)))
def test_a_kill_after_each_single_change_on_disk_stores_each_event_once(
    seed: int, *, durable: bool, power: bool
) -> None:
    whole = scenario(seed, None, durable=durable, power=False)
    whole.settle_and_check()
    for kill_at in range(1, whole.disk.changes + 1):
        scenario(seed, kill_at, durable=durable, power=power).settle_and_check()


@pytest.mark.parametrize("more", [0, 25])
@pytest.mark.parametrize("seed", range(3 + int(SOAK / 10)))
def test_an_error_of_the_disk_at_each_single_change_stores_each_event_once(
    seed: int, more: int
) -> None:
    """The shipper goes on for a while, so that records are overwritten; then the power fails."""
    whole = scenario(seed, None, durable=True, power=False)
    for fail_at in range(1, whole.disk.changes + 1):
        world = scenario(seed, None, durable=True, power=False, fail_at=fail_at)
        for _ in range(more):
            world.log(1, poison=False)
            world.ship(1)
        world.lose_power(random.Random(fail_at))
        world.settle_and_check()


# The counter-examples that break a protocol of intents, finalize and blanks alone


def test_a_dead_letter_before_a_kill_does_not_pass_for_a_stored_batch() -> None:
    world = World(durable=True)
    world.log(2, poison=False)
    world.log(1, poison=True)
    world.log(2, poison=False)
    whole = scenario_of_steps(world, [5])
    assert whole.dead_letters == ["event 2"]
    for kill_at in range(1, world.disk.changes + 1):
        world = World(durable=True)
        world.log(2, poison=False)
        world.log(1, poison=True)
        world.log(2, poison=False)
        world.disk.kill_at = kill_at
        scenario_of_steps(world, [5]).settle_and_check()


def test_a_late_first_copy_after_a_retry_that_was_refused_shifts_no_offset() -> None:
    world = World(durable=True)
    world.log(3, poison=False)
    world.streams.faults.extend(["late", "refusal"])
    world.ship(3)
    world.ship(3)
    world.streams.deliver_late()
    world.log(3, poison=False)
    world.settle_and_check()
    assert all(stream.is_finalized for stream in [*world.streams.streams.values()][:-1])


def test_a_full_disk_does_not_stop_the_delivery_that_would_free_it() -> None:
    world = World(durable=True)
    world.log(3, poison=False)
    world.ship(1)  # makes the ledger
    world.disk.is_full = True
    for _ in range(10):
        world.ship(5)
    assert sum(world.streams.stored().values()) == 3
    world.settle_and_check()


def test_what_was_erased_long_ago_does_not_come_back_with_a_loss_of_power() -> None:
    for seed in range(20):
        world = World(durable=True)
        for _ in range(20):
            world.log(2, poison=False)
            world.ship(2)
        world.lose_power(random.Random(seed))
        world.settle_and_check()


def test_an_intent_that_only_the_cache_holds_is_not_relied_on_after_an_error_of_the_disk() -> None:
    """Killed before it was forced; then the disk refuses to force it, and forgets it."""
    for kill_at in range(1, 10):
        for errors in (1, 2):
            world = World(durable=True)
            world.ship(1)  # makes the ledger
            world.log(1, poison=False)
            world.kill()
            world.disk.kill_at = world.disk.changes + kill_at
            world.ship(1)
            for _ in range(errors):
                world.disk.fail_at = world.disk.changes + 1
                world.ship(1)
            world.ship(1)
            world.lose_power(random.Random(kill_at))
            world.settle_and_check()


def scenario_of_steps(world: World, limits: list[Any]) -> World:
    for limit in limits:
        world.ship(limit)
    return world
