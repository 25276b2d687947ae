"""How a device trains: small typed fields, each about one thing, checked against each other.

Papers' methods are combinations of them. Importable without torch.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ArchValues = dict[str, int | float]
DRAWN = ("random", "sandwich")


class Recipe(BaseModel):
    """Local training: what one device does in one round; `name` says what it is called.

    Length: exactly one of `epochs` and `steps` is used, `steps` when it is given.

    Which subnets: in every step the assigned subnet learns labels, unless `train_assigned` is
    false, and `students` inside it are trained on the same weights: none; the smallest of the
    space; `random_subnets` random ones; both of these (sandwich); or all that are `listed`. Where
    random ones are wanted and some are listed, they are drawn from the list, else from all that the
    assigned one contains; a listed one that it does not contain is left out. They are drawn anew
    every epoch or step (`redraw`). With `attentive` = best or worst, each random one is that of
    `attentive_candidates` of about equal MACs whose loss on the batch is lowest or highest.

    What students learn: labels; the assigned subnet's predictions by Kullback-Leibler divergence
    (`kl`, at a `temperature`) or by adaptive α-divergence (`alpha`, with its α_min, α_max and cut);
    with `label_weight` also labels, so much beside the predictions.

    How gradients come together: the students' are multiplied by `student_weight` (0 trains none),
    and with `combine` = sum they are added up, mean averaged over the students, project added up
    after the assigned subnet's has been projected onto what does them no harm. With `one_pass` the
    students share one masked pass, each on its own part of the batch.

    Further terms and bounds: `logit_adjustment` τ corrects for a device's own label frequencies,
    `proximal` μ pulls to the values that were received; `clip_value` bounds each number of the
    gradient, then `clip_norm` its norm.

    Precision as one more elastic dimension: with `sample_bits` every step draws a width from these, and
    all its passes run on kernels rounded to it (32: as they are; kernels over one channel keep 8 bits, as
    in files). What is returned are the float weights.

    A device that trains in few bits (`train_bits` of its profile) returns the rounded weights, the
    only ones that it would have without floats, whatever `sample_bits` says. `return_quantized` = false
    has it return the float weights that its training moved. Both are alike for a device of 32 bits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = "fedofa"
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(0.1, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    clip_value: float | None = Field(None, gt=0)
    clip_norm: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=2)
    epochs: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1)

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    logit_adjustment: float = Field(0.0, ge=0, le=4)
    proximal: float = Field(0.0, ge=0)

    train_assigned: bool = True
    students: Literal["none", "smallest", "random", "sandwich", "listed"] = "sandwich"
    random_subnets: int = Field(1, ge=0)
    listed: tuple[ArchValues, ...] = ()
    redraw: Literal["epoch", "step"] = "epoch"
    attentive: Literal["off", "best", "worst"] = "off"
    attentive_candidates: int = Field(3, ge=1)

    learn: Literal["labels", "kl", "alpha"] = "kl"
    temperature: float = Field(1.0, gt=0)
    label_weight: float = Field(0.0, ge=0)
    alpha_min: float = -1.0
    alpha_max: float = 1.0
    alpha_clip: float = Field(5.0, gt=0)

    student_weight: float = Field(1.0, ge=0)
    combine: Literal["sum", "mean", "project"] = "sum"
    one_pass: bool = False

    sample_bits: tuple[Literal[32, 8, 4], ...] = ()
    return_quantized: bool = True

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for wrong, message in (*self._about_which(), *self._about_how()):
            if wrong:
                raise ValueError(message)
        return self

    def _about_which(self) -> tuple[tuple[bool, str], ...]:
        draws = self.students in DRAWN and self.random_subnets > 0
        return (
            (
                not self.train_assigned and (self.students == "none" or self.student_weight == 0),
                "train_assigned = false trains nothing without students; allowed with students = "
                "smallest, random, sandwich, listed and a student_weight above 0",
            ),
            (
                self.students == "random" and self.random_subnets == 0,
                "random_subnets = 0: at least 1 with students = random",
            ),
            (
                self.attentive != "off" and not draws,
                f"attentive = {self.attentive} chooses among random subnets; it needs students = "
                "random or sandwich and random_subnets of at least 1",
            ),
            (
                bool(self.listed) and self.students not in (*DRAWN, "listed"),
                f"listed is not used with students = {self.students}; allowed with listed, random, "
                "sandwich",
            ),
        )

    def _about_how(self) -> tuple[tuple[bool, str], ...]:
        least = 2 * self.random_subnets + 2 * (self.students == "sandwich")
        return (
            (
                self.learn != "labels" and not self.train_assigned,
                f"learn = {self.learn}: students learn from the assigned subnet, which "
                "train_assigned = false leaves out; allowed: labels",
            ),
            (
                self.temperature != 1 and self.learn != "kl",
                f"temperature = {self.temperature} is used with learn = kl only",
            ),
            (
                self.label_weight > 0 and self.learn == "labels",
                "label_weight adds labels to predictions; with learn = labels leave it at 0",
            ),
            (
                self.alpha_min >= self.alpha_max,
                f"alpha_min = {self.alpha_min} must be below alpha_max = {self.alpha_max}",
            ),
            (
                self.combine == "project" and not (self.train_assigned and self.students != "none"),
                "combine = project needs both sides: train_assigned = true and students",
            ),
            (
                self.one_pass and self.students in ("none", "smallest"),
                f"one_pass joins several students; students = {self.students} is at most one",
            ),
            (
                self.one_pass and self.students in DRAWN and self.batch_size < least,
                f"one_pass: batch_size = {self.batch_size} is shared by the students, at least 2 "
                f"examples for each; at least {least}",
            ),
        )

    def passes(self) -> int:
        """What one example costs a step at most, in forward passes of the assigned subnet.

        Forward and backward count 3. Attentive choices once an epoch are left out, see `looks`.
        """
        drawn = self.random_subnets if self.students in DRAWN else 0
        students = drawn + (self.students in ("smallest", "sandwich"))
        if self.students == "listed":
            students = len(self.listed)
        if self.student_weight == 0:
            drawn = students = 0
        if self.one_pass:
            students = min(students, 1)
        return 3 * (self.train_assigned + students) + drawn * self.looks()

    def looks(self) -> int:
        """Forward passes a step of choosing one attentive student.

        None where students are drawn once an epoch: then it is one batch of many.
        """
        if self.attentive == "off" or self.redraw == "epoch":
            return 0
        return self.attentive_candidates
