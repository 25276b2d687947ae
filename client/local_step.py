"""One training step's gradients: the assigned subnet, its students, and how they come together."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ..protos.recipe import Recipe
from ..supernet.batch import Batch
from ..supernet.called_layers import narrow
from ..supernet.cost import cost
from ..supernet.fake_quant import quantized, rounded
from ..supernet.losses.alpha_divergence import adaptive_divergence
from ..supernet.losses.cross_entropy import cross_entropy
from ..supernet.losses.distillation import distillation
from ..supernet.losses.logit_adjustment import logit_shift
from ..supernet.losses.proximal import add_proximal
from ..supernet.losses.surgery import project
from ..supernet.precision import FLOAT_BITS
from ..supernet.space import Arch, Space
from ..supernet.subnet import on_views
from .passes import FORWARD, FORWARD_AND_BACKWARD, InTurn, OnePass


class LocalStep:
    """Fills the leaves' gradients batch by batch.

    `leaves` are the assigned subnet's tensors, and `trained` those of them that training changes: all
    but the frozen ones. `macs` is what was spent so far: per example and subnet its MACs once for a
    forward pass, thrice with backward.

    With few `bits` every pass runs on the leaves as rounded at that moment, and the gradients that it
    finds there are the leaves' (straight-through). Students are cut from the assigned subnet's
    rounded weights, so their levels are its. Where the recipe samples bits, `hold` says each step's.
    """

    def __init__(
        self,
        space: Space,
        assigned: Arch,
        recipe: Recipe,
        values: Mapping[str, Tensor],
        labels_n: Tensor,
        bits: int = FLOAT_BITS,
    ) -> None:
        self.leaves = {name: v.detach().clone().requires_grad_() for name, v in values.items()}
        self.trained: Mapping[str, Tensor] = self.leaves
        self.macs = 0
        self._space, self._assigned, self._recipe, self._bits = space, assigned, recipe, bits
        self._sampled = bool(recipe.sample_bits) and bits == FLOAT_BITS
        self._least = narrow(space, assigned) if self._sampled else {}
        if self._sampled:
            self._bits = min(recipe.sample_bits)
        # With 32 bits the leaves themselves: nothing is copied, and no step does more than before.
        self._held = self._rounded()
        self._copies = {n: v for n, v in self._held.items() if v is not self.leaves[n]}
        for copy in self._copies.values():
            copy.requires_grad_()
        self._received = values
        self._shift_c = logit_shift(
            labels_n, space.layers(assigned)[-1].out_channels, recipe.logit_adjustment
        )
        self._forward = on_views(space, assigned, self._held, assigned)
        self._passes = (OnePass if recipe.one_pass else InTurn)(space, assigned, self._held)

    def freeze(self, names: Collection[str]) -> None:
        """Train these no more: they get no gradients, and no term pulls at them."""
        for name in names:
            self.leaves[name].requires_grad_(False)
            if name in self._copies:
                self._copies[name].requires_grad_(False)
        self.trained = {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}

    def hold(self, bits: int) -> None:
        """Run the next passes on kernels of this width, one of those that the recipe samples."""
        self._bits = bits

    def fill(self, batch: Batch, students: Sequence[Arch]) -> float:
        """One step's gradients; returns the loss on labels, as a number.

        That of the assigned subnet, or the students' mean where it is not trained.
        """
        recipe, teacher_bc, losses = self._recipe, None, []
        self._round()
        if recipe.train_assigned:
            teacher_bc = self._forward(batch.inputs(self._space.input_shape(self._assigned)))
            loss = self._on_labels(teacher_bc, batch.labels_b)
            loss.backward()  # type: ignore[no-untyped-call]
            self._spend(self._assigned, len(batch), FORWARD_AND_BACKWARD)
            losses.append(loss.item())
        if students:
            own = self._put_aside() if recipe.combine == "project" else {}
            found = self._train(batch, students, teacher_bc)
            if own:
                self._put_together(own)
            if not recipe.train_assigned:
                losses += found
        self._hand_over()
        if recipe.proximal:
            add_proximal(self.trained, self._received, recipe.proximal)
        if recipe.clip_value is not None:
            clip_grad_value_(self.trained.values(), recipe.clip_value)
        if recipe.clip_norm is not None:
            clip_grad_norm_(self.trained.values(), recipe.clip_norm)
        return sum(losses) / len(losses)

    def rate(self, batch: Batch, arch: Arch) -> float:
        """A subnet's loss on the labels of a batch; nothing is trained."""
        x = batch.inputs(self._space.input_shape(arch))
        self._round()
        with torch.inference_mode():
            logits_bc = on_views(self._space, arch, self._held, self._assigned)(x)
            loss = self._on_labels(logits_bc, batch.labels_b)
        self._spend(arch, len(batch), FORWARD)
        return loss.item()

    def _train(
        self, batch: Batch, students: Sequence[Arch], teacher_bc: Tensor | None
    ) -> list[float]:
        """Add the students' gradients; returns their losses, unweighted."""
        losses = []
        for one in self._passes.run(batch, students):
            found = [
                self._student_loss(
                    logits_bc,
                    batch.labels_b[rows],
                    None if teacher_bc is None else teacher_bc[rows],
                )
                for rows, logits_bc in one.parts
            ]
            loss = self._weighted(sum(found[1:], found[0]), len(students))
            loss.backward()  # type: ignore[no-untyped-call]
            losses += [part.item() for part in found]
            self.macs += one.macs
        return losses

    def _on_labels(self, logits_bc: Tensor, labels_b: Tensor) -> Tensor:
        return cross_entropy(logits_bc, labels_b, self._recipe.label_smoothing, self._shift_c)

    def _student_loss(
        self, student_bc: Tensor, labels_b: Tensor, teacher_bc: Tensor | None
    ) -> Tensor:
        recipe = self._recipe
        if recipe.learn == "labels" or teacher_bc is None:
            return self._on_labels(student_bc, labels_b)
        if recipe.learn == "kl":
            loss = distillation(student_bc, teacher_bc, recipe.temperature)
        else:
            bounds = recipe.alpha_min, recipe.alpha_max, recipe.alpha_clip
            loss = adaptive_divergence(student_bc, teacher_bc, *bounds)
        if recipe.label_weight:
            loss = loss + recipe.label_weight * self._on_labels(student_bc, labels_b)
        return loss

    def _weighted(self, loss: Tensor, students: int) -> Tensor:
        recipe = self._recipe
        weight = recipe.student_weight / (students if recipe.combine == "mean" else 1)
        return loss if weight == 1 else weight * loss

    def _put_aside(self) -> dict[str, Tensor]:
        """The gradients so far, taken off what is held."""
        found = {n: held.grad for n, held in self._held.items() if held.grad is not None}
        for held in self._held.values():
            held.grad = None
        return found

    def _put_together(self, assigned: dict[str, Tensor]) -> None:
        """The students' gradients and the assigned subnet's, projected."""
        students = self._put_aside()
        project(assigned, students)
        for name, held in self._held.items():
            parts = [part[name] for part in (assigned, students) if name in part]
            held.grad = sum(parts[1:], parts[0]) if parts else None

    @torch.no_grad()
    def _rounded(self) -> Mapping[str, Tensor]:
        if not self._sampled:
            return quantized(self.leaves, self._bits)
        return rounded(self.leaves, {n: max(self._bits, b) for n, b in self._least.items()})

    def _round(self) -> None:
        """Bring the rounded copies up to date with the leaves."""
        if self._copies:
            found = self._rounded()
            for name, copy in self._copies.items():
                copy.detach().copy_(found[name].detach())

    def _hand_over(self) -> None:
        """Give the leaves the gradients of their rounded copies."""
        for name, copy in self._copies.items():
            self.leaves[name].grad, copy.grad = copy.grad, None

    def _spend(self, arch: Arch, examples: int, passes: int) -> None:
        self.macs += passes * examples * cost(self._space, arch).macs
