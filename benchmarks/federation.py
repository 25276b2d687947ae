"""A federation in one process, without Flower: the server's rounds and the devices' training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedofa.client.device import data as data_of
from fedofa.client.profile import label_counts
from fedofa.client.tasks import run_train
from fedofa.protos.device import DataSource, Device
from fedofa.protos.messages import DeviceProfile, TrainReply, TrainRequest
from fedofa.protos.recipe import Recipe
from fedofa.server.checkpoint import Checkpoint, CheckpointStore
from fedofa.server.config import RunConfig
from fedofa.server.events import EventLog
from fedofa.server.exchange import Answer, Request
from fedofa.server.fleet import Fleet, Member
from fedofa.server.limits import training_limits
from fedofa.server.open_round import Assignments
from fedofa.server.samplers.assigned import Assigned
from fedofa.server.selection import Selection
from fedofa.server.training import RoundReport, Training
from fedofa.supernet.cost import cost
from fedofa.supernet.precision import FLOAT_BITS
from fedofa.supernet.randomness import stream
from fedofa.supernet.space import Arch, Space

MANY = 2**50
DRAWS = 64
PLANS, LOOKED_AT = 6, 100


@dataclass(frozen=True, slots=True)
class Spent:
    """What training has cost so far."""

    rounds: int
    train_macs: int
    bytes_sent: int
    bytes_received: int
    loss: float


Tamper = Callable[[Request, Answer[TrainReply]], Answer[TrainReply]]


def honest(request: Request, answer: Answer[TrainReply]) -> Answer[TrainReply]:
    """What comes is what a device trained."""
    return answer


class Federation:
    """Devices with their classes, and a run over them; `tamper` stands between them."""

    def __init__(
        self,
        config: RunConfig,
        devices: Mapping[str, Device],
        folder: Path,
        tamper: Tamper = honest,
    ) -> None:
        self.config, self.space = config, config.build_space()
        self._devices, self._tamper = dict(enumerate(devices.values())), tamper
        log = EventLog(folder / "events.jsonl")
        self.training = Training(config, self.space, _NoStore(folder), log)
        self.fleet = Fleet(
            {
                device.name: Member(
                    node,
                    profile,
                    training_limits(
                        self.space,
                        profile,
                        config.classes[profile.device_class].budget(),
                        config.recipe,
                        config.round.deadline_s,
                    ),
                    config.classes[profile.device_class].budget(),
                )
                for node, device in self._devices.items()
                for profile in [_profile(device)]
            }
        )

    def train(self) -> tuple[Spent, Assignments]:
        """All rounds; what they cost, and who trained what in the last one."""
        reports: list[RoundReport] = []
        assignments: Assignments = {}
        while self.training.round < self.config.round.rounds:
            assignments = self.training.assignments(self.fleet)
            requests = self.training.requests(assignments)
            report = self.training.finish_round(assignments, self.fleet, self._answers(requests))
            if report is None:
                raise AssertionError("a round came to nothing")
            reports.append(report)
        spent = Spent(
            len(reports),
            sum(r.train_macs for r in reports),
            sum(r.bytes_sent for r in reports),
            sum(r.bytes_received for r in reports),
            reports[-1].loss,
        )
        return spent, assignments

    def _answers(self, requests: Iterable[Request]) -> Iterator[Answer[TrainReply]]:
        for request in requests:
            if not isinstance(request.body, TrainRequest):
                raise TypeError("a training request was expected")
            body, values = run_train(self._devices[request.node], request.body, request.values)
            yield self._tamper(request, Answer(request.node, body, values))


class _NoStore(CheckpointStore):
    """Nothing is kept: a benchmark's run is not resumed."""

    def write(self, checkpoint: Checkpoint) -> Path:
        return self.folder


def fleet_of(source: DataSource, classes: Sequence[str]) -> dict[str, Device]:
    """Name → device, one a client of the data, classes in turn."""
    return {
        f"client-{place:02d}": Device(
            name=f"client-{place:02d}",
            device_class=classes[place % len(classes)],
            source=DataSource(
                source.function, source.root, place, source.clients, source.arguments
            ),
        )
        for place in range(source.clients)
    }


def _profile(device: Device) -> DeviceProfile:
    data = data_of(device)
    return DeviceProfile(
        device=device.name,
        device_class=str(device.device_class),
        cores=1,
        memory_bytes=MANY,
        train_macs_per_s=1e18,
        infer_macs_per_s=1e18,
        budget={},
        runtimes=(),
        examples=len(data.train),
        validation_examples=len(data.validation),
        input_shape=data.train.x.shape[1:],
        classes=data.classes,
        normalization=data.normalization,
        labels=label_counts(data),
        train_bits=device.train_bits or FLOAT_BITS,
    )


def rounds_for(federation: Federation, budget_macs: float) -> int:
    """How many rounds cost about this many training MACs, by assigning without training.

    Of a few numbers of rounds, each from what the one before would cost, the nearest is taken:
    a method that changes as it goes on costs no fixed amount a round.
    """
    tried: dict[int, float] = {}
    rounds = 8
    while rounds not in tried and len(tried) < PLANS:
        tried[rounds] = _planned_macs(federation, rounds)
        rounds = max(2, round(rounds * budget_macs / tried[rounds]))
    federation.training.round = 0
    federation.training.selection = Selection(federation.config, federation.space)
    return min(tried, key=lambda rounds: abs(tried[rounds] - budget_macs))


def _planned_macs(federation: Federation, rounds: int) -> float:
    """What a run of so many rounds is expected to cost; of long runs evenly spread rounds count."""
    total, training, recipe = 0.0, federation.training, federation.config.recipe
    looked = min(rounds, LOOKED_AT)
    config = federation.config.model_copy(
        update={"round": federation.config.round.model_copy(update={"rounds": rounds})}
    )
    training.selection = Selection(config, federation.space)
    for place in range(looked):
        training.round = (2 * place + 1) * rounds // (2 * looked)
        for member, assigned in training.assignments(federation.fleet).values():
            examples = member.profile.examples
            steps = recipe.steps or recipe.epochs * max(1, examples // recipe.batch_size)
            one = macs_per_example(training.space, assigned.recipe(recipe), assigned)
            total += steps * min(recipe.batch_size, examples) * one
    return total * rounds / looked


def macs_per_example(space: Space, recipe: Recipe, assigned: Assigned) -> float:
    """Expected training MACs of one example in one step; forward and backward count 3."""
    listed = assigned.students or ()
    mean = _mean_student(space, assigned.arch, listed)
    students = 0.0
    if recipe.student_weight > 0:
        if recipe.students in ("smallest", "sandwich"):
            students += 3 * cost(space, space.smallest()).macs
        if recipe.students in ("random", "sandwich"):
            looks = recipe.looks()
            students += recipe.random_subnets * (3 + looks) * mean
        if recipe.students == "listed":
            students += 3 * len(listed) * mean
    return 3 * recipe.train_assigned * cost(space, assigned.arch).macs + students


@lru_cache(maxsize=4096)
def _mean_student(space: Space, arch: Arch, listed: tuple[Arch, ...]) -> float:
    rng = stream("mean student")
    drawn = listed or tuple(space.sample_within(arch, rng) for _ in range(DRAWS))
    return sum(cost(space, inner).macs for inner in drawn) / len(drawn)
