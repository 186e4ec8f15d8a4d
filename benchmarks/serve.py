"""Load of `tutelage serve`: requests by several clients at once, how many were lost, and how long they took.

python -m benchmarks.serve DEPLOYED_DIRECTORY
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tests.helpers.served import noise, served

from tutelage.deploy.predictor import Predictor
from tutelage.deploy.serve import warm_up


def main() -> None:
    """Send the requests and print the counts and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="that `tutelage export` wrote")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    predictor = Predictor(args.directory)
    warm_up(predictor)
    pictures = [noise(seed) for seed in range(8)]
    with served(predictor) as client:

        def ask(number: int) -> tuple[int, float]:
            begun = time.perf_counter()
            status, _ = client.predict([("a.jpg", pictures[number % len(pictures)])])
            return status, 1000 * (time.perf_counter() - begun)

        begun = time.perf_counter()
        with ThreadPoolExecutor(args.clients) as pool:
            found = list(pool.map(ask, range(args.requests)))
        seconds = time.perf_counter() - begun
    times = np.array([milliseconds for _, milliseconds in found])
    good = sum(status == 200 for status, _ in found)
    low, median, high, most = (*np.percentile(times, [5, 50, 95]), times.max())
    print(f"{predictor.file}: {good} of {args.requests} requests answered, by {args.clients} clients at once")
    print(f"{args.requests / seconds:.1f} requests/s")
    print(f"p5 {low:.0f} ms, median {median:.0f} ms, p95 {high:.0f} ms, most {most:.0f} ms")


if __name__ == "__main__":
    main()
