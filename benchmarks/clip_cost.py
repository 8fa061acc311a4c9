# SPDX-License-Identifier: Apache-2.0
"""Measure the processor time per clip: examined after its download, and persisted in a folder.

``python benchmarks/clip_cost.py [--clips N] [--clip FILE] [--against CHECKOUT]``. Each clip is a
file of its own in the staging folder, as a download leaves it. The time of the decoder is that of
its process. The figures are medians over rounds of 20 clips, since other processes share the
machine. Two versions alternate, round by round. The plain clip is the one of the other benchmarks;
the detailed one has the size of a real one.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
from av.filter import Graph
from service import draw_clip

from prefect_cometapi.flows.steps import common, fetch, persist
from prefect_cometapi.runway.models.generation import FetchedVideo, Submission
from prefect_cometapi.runway.storage.fetched import discard, find_fetched
from prefect_cometapi.runway.storage.folder import FolderStorage
from prefect_cometapi.runway.storage.staging import staged_path

ROUND = 20

Found = TypeVar("Found")


def decoders() -> list[Path]:
    """Return the folders in /proc of the processes that this thread has started."""
    return [Path("/proc", pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def decoder_seconds() -> float:
    """Return the processor time that the decoder has used so far."""
    runs = [thread / "schedstat" for one in decoders() for thread in (one / "task").iterdir()]
    return sum(int(run.read_text().split()[0]) for run in runs) / 1e9


def decoder_memory(name: str) -> float:
    """Return a figure of the decoder's memory in MB, by its name in /proc."""
    lines = [line for one in decoders() for line in (one / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def decoder_faults() -> int:
    """Return the number of page faults of the decoder so far."""
    states = [(one / "stat").read_text().rpartition(")")[2].split() for one in decoders()]
    return sum(int(state[7]) for state in states)


def draw_detailed_clip(path: Path) -> Path:
    """Write a clip of five seconds whose frames are hard to compress."""
    graph = Graph()
    chain = [
        graph.add("mandelbrot", "size=1280x768:rate=24"),
        graph.add("noise", "alls=4:allf=t"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*chain).configure()
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 768, "yuv420p"
        stream.bit_rate = 6_000_000
        for number in range(120):
            frame = graph.vpull()
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def submission_of(number: int) -> Submission:
    """Return the submission that a clip belongs to."""
    return Submission(
        idempotency_key=f"clip-{number}",
        task_id=f"task-{number}",
        submitted_at=datetime.now(UTC),
        route="image_to_video",
        model="gen4_turbo",
        request={"promptText": "slow zoom", "promptImage": "https://example.com/cat.jpg"},
    )


class Bench:
    """Clips in a folder, and the time that each step takes with them.

    Args:
        folder: Folder of the storage.
        clip: Clip that every output is a copy of.
    """

    def __init__(self, folder: Path, clip: Path) -> None:
        self.place = FolderStorage(folder)
        self.clip = clip
        self.sha256 = hashlib.sha256(clip.read_bytes()).hexdigest()
        self.number = 0

    def round(self) -> dict[str, float]:
        """Return the milliseconds per clip of each step, over one round of clips."""
        submissions = [submission_of(self.number + n) for n in range(ROUND)]
        self.number += ROUND
        staging = self.place.staging()
        stems = [common.stem_of(each, 0) for each in submissions]
        paths = [staged_path(staging, stem, ".mp4") for stem in stems]
        for path in paths:
            shutil.copyfile(self.clip, path)
        before, faults = decoder_seconds(), decoder_faults()
        ours, videos = _timed(
            lambda: [self._examined(*each) for each in zip(stems, paths, strict=True)]
        )
        theirs = 1000 * (decoder_seconds() - before) / ROUND
        faulted = decoder_faults() - faults
        kept, _ = _timed(
            lambda: [self._kept(*each) for each in zip(submissions, stems, videos, strict=True)]
        )
        return {
            "examine": ours,
            "examine, decoder": theirs,
            "persist": kept,
            "all": ours + theirs + kept,
            "page faults": faulted / ROUND,
            "peak MB": decoder_memory("VmHWM"),
            "- not of files": decoder_memory("RssAnon"),
        }

    def _examined(self, stem: str, path: Path) -> FetchedVideo:
        find_fetched(self.place, stem)
        return fetch._examined(path, self.sha256, "video", stem)

    def _kept(self, submission: Submission, stem: str, video: FetchedVideo) -> None:
        persist._persist(submission, submission.model_dump(mode="json"), video, 0, self.place)
        discard(video, stem)


def _timed(work: Callable[[], Found]) -> tuple[float, Found]:
    started = time.process_time()
    found = work()
    return 1000 * (time.process_time() - started) / ROUND, found


def serve(clip: Path) -> None:
    """Measure a round for each line of the standard input."""
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-", dir=Path.cwd()) as folder:
        bench = Bench(Path(folder) / "videos", clip)
        bench.round()
        for _ in sys.stdin:
            print(json.dumps(bench.round()), flush=True)


@contextmanager
def bench_of(checkout: Path, clip: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """Yield a function that measures a round with the code of a checkout."""
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as folder:
        package = Path(folder) / "prefect_cometapi"
        package.mkdir()
        parts = ("runway", "blocks", "flows", "deployments", "sandbox")
        for part in [*(checkout / "package").iterdir(), *(checkout / part for part in parts)]:
            (package / part.name).symlink_to(part)
        process = subprocess.Popen(
            [sys.executable, str(checkout / "benchmarks/clip_cost.py"), "--serve", str(clip)],
            env={**os.environ, "PYTHONPATH": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        assert process.stdout
        questions, answers = process.stdin, process.stdout

        def measure() -> dict[str, float]:
            print(flush=True, file=questions)
            return json.loads(answers.readline())

        try:
            yield measure
        finally:
            questions.close()
            process.wait(timeout=10)
            answers.close()


def compare(clip: Path, rounds: int, checkouts: dict[str, Path]) -> None:
    """Measure versions in turn, and print a column for each."""
    with ExitStack() as stack:
        benches = {
            name: stack.enter_context(bench_of(each, clip)) for name, each in checkouts.items()
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in benches}
        for _ in range(rounds):
            for name, measure in benches.items():
                found[name].append(measure())
    print(f"{'':18}", *(f"{name:>9}" for name in found))
    for step in found["this"][0]:
        medians = [statistics.median(each[step] for each in one) for one in found.values()]
        print(f"{step:18}", *(f"{median:9.2f}" for median in medians))


def main() -> None:
    """Measure and print the figures: milliseconds of a processor, page faults and memory."""
    parser = argparse.ArgumentParser(description="Processor time per clip.")
    parser.add_argument("--clips", type=int, default=400, help="number of clips of each kind")
    parser.add_argument("--clip", type=Path, help="video in place of the two that are drawn")
    parser.add_argument("--against", type=Path, help="folder of another version of this project")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    checkouts = {"this": Path(__file__).parents[1]}
    if options.against:
        checkouts["other"] = options.against.resolve()
    with tempfile.TemporaryDirectory(prefix="cometapi-benchmark-") as folder:
        clips = (
            {"given": options.clip.resolve()}
            if options.clip
            else {
                "plain": draw_clip(Path(folder) / "plain.mp4"),
                "detailed": draw_detailed_clip(Path(folder) / "detailed.mp4"),
            }
        )
        for name, clip in clips.items():
            print(f"{name} clip, {clip.stat().st_size / 1e6:.2f} MB")
            compare(clip, max(1, options.clips // ROUND), checkouts)


if __name__ == "__main__":
    main()
