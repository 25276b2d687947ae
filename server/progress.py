"""Showing a run while it goes on: events from its log, as bars and lines on a terminal."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .events import read_events
from .privacy.statement import line

Event = dict[str, Any]
POLL_SECONDS = 0.2


class Tail:
    """Reads a log's new events each time it is asked; what stood there before is not shown."""

    def __init__(self, path: Path, show: Callable[[Event], None]) -> None:
        self._path, self._show = path, show
        self._offset = path.stat().st_size if path.exists() else 0
        self.last: dict[str, Event] = {}

    def __call__(self) -> None:
        """Show what is new; `last` keeps the newest event of each kind."""
        for event, offset in read_events(self._path, self._offset):
            self._offset = offset
            self.last[str(event["event"])] = event
            self._show(event)


@contextmanager
def following(tail: Tail) -> Iterator[Tail]:
    """Call the tail again and again beside other work, and once more at the end."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(POLL_SECONDS):
            tail()

    thread = threading.Thread(target=loop, name="follow", daemon=True)
    thread.start()
    try:
        yield tail
    finally:
        stop.set()
        thread.join()
        tail()


class View:
    """One bar for the job's steps, and a line for whatever deserves one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> "View":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        show = getattr(self, f"_on_{event['event']}", None)
        if show is not None:
            show(event)

    def step(self, name: str, done: int, total: int, note: str) -> None:
        """Set a bar."""
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._bars[name], completed=done, total=total, note=note)

    def line(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, style=style, highlight=False, markup=False)

    def _on_started(self, event: Event) -> None:
        if event["job"] in ("train", "finish"):
            self.step("training", event["done"], event["rounds"], "waiting for devices")

    def _on_device_joined(self, event: Event) -> None:
        budget = ", ".join(f"{k} ≤ {v:,}" for k, v in event["budget"].items() if k == "macs")
        self.line(
            f"  {event['device']}: class {event['device_class']}, {event['examples']} examples"
            + (f", {budget}" if budget else "")
        )

    def _on_device_left_out(self, event: Event) -> None:
        self.line(f"  left out: {event['reason']}", "yellow")

    def _on_round(self, event: Event) -> None:
        spent = f"  ε {event['epsilon']:.2f}" if "epsilon" in event else ""
        loss = "-" if event["loss"] is None else f"{event['loss']:.3f}"
        note = f"{event['branch']}  " if "branch" in event else ""
        note += f"loss {loss}  {event['accepted']} updates  coverage {event['coverage']:.0%}{spent}"
        if event.get("staleness"):
            note += f"  {event['staleness']:.1f} versions old"
        total = self._progress.tasks[0].total if self._progress.tasks else event["round"]
        self.step("training", event["round"], int(total or event["round"]), note)

    def _on_coalitions(self, event: Event) -> None:
        for one in event["coalitions"]:
            self.line(
                f"  {one['branch']}: {len(one['devices'])} devices, {one['examples']} examples: "
                + ", ".join(one["devices"])
            )

    def _on_device_placed(self, event: Event) -> None:
        self.line(f"  {event['device']} joins {event['branch']}: {event['reason']}")

    def _on_branch_failed(self, event: Event) -> None:
        self.line(f"  {event['branch']}: {event['reason']}", "red")

    def _on_update_refused(self, event: Event) -> None:
        self.line(
            f"  round {event['round']}: {event['device']} refused: {event['reason']}", "yellow"
        )

    def _on_update_suspected(self, event: Event) -> None:
        self.line(
            f"  round {event['round']}: {event['device']} suspected: {event['code']}", "yellow"
        )

    def _on_quarantined(self, event: Event) -> None:
        self.line(
            f"  {event['device']} is in quarantine until round {event['until_round']}: "
            f"{event['code']}",
            "red",
        )

    def _on_aggregation_note(self, event: Event) -> None:
        self.line(f"  round {event['round']}: {event['note']}")

    def _on_no_update(self, event: Event) -> None:
        self.line(f"  round {event['round']}: {event['device']}: {event['reason']}", "yellow")

    def _on_round_abandoned(self, event: Event) -> None:
        self.line(f"  round {event['round']} abandoned: {event['accepted']} updates", "yellow")

    def _on_budget_spent(self, event: Event) -> None:
        self.line(
            f"  the privacy budget is spent after {event['round']} of {event['rounds']} rounds: "
            "abandoned ones count too",
            "yellow",
        )

    def _on_finished(self, event: Event) -> None:
        if "privacy" in event:
            self.line(f"  private: {line(event['privacy'])}")

    def _on_resumed(self, event: Event) -> None:
        self.line(f"  resumed after round {event['round']}")

    def _on_finishing(self, event: Event) -> None:
        expanded, alone, out = (len(event[part]) for part in ("expanded", "alone", "left_out"))
        self.line(
            f"  {event['device_class']}: {expanded} devices train its {event['target_macs']:,} MACs "
            f"inside up to {event['largest_macs']:,}, {alone} alone; {out} cannot hold it"
        )
        if not expanded and event["method"] == "surgery":
            self.line("  no device can train more than the target: plain fine-tuning", "yellow")

    def _on_compared(self, event: Event) -> None:
        self.line(
            f"  {event['device_class']}: {event['verdict']}", "" if event["better"] else "yellow"
        )

    def _on_step(self, event: Event) -> None:
        self.step(event.get("job", "specialize"), event["done"], event["total"], event["what"])

    def _on_converted(self, event: Event) -> None:
        self.step(event["what"], event["done"], event["total"], event["device_class"])

    def _on_publishing(self, event: Event) -> None:
        self.step("publishing", event["done"], event["total"], event["device_class"])

    def _on_published(self, event: Event) -> None:
        self.line(
            f"  {event['device_class']}: {event['model']} version {event['version']} published"
        )

    def _on_folder_failed(self, event: Event) -> None:
        self.line(
            f"  {event['device_class']}: {event['model']} version {event['version']} is published, and "
            f"devices pull it, but {event['folder']} could not be written: {event['reason']}",
            "red",
        )

    def _on_class_failed(self, event: Event) -> None:
        what = "measured" if event.get("job") == "evaluate" else "published"
        self.line(f"  {event['device_class']}: not {what}: {event['reason']}", "red")
