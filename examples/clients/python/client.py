"""Asks a Nexus server for one prediction by both of its APIs: python client.py 127.0.0.1:8001"""

import sys

import numpy as np

from nexus_grpc.client import Client, NexusClientError, Retry

ROW = [5.1, 3.5, 1.4, 0.2]


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
    try:
        # A script that is run by hand should say at once that nobody is there; by default the client tries 6 times.
        with Client(address, timeout_s=10, retry=Retry(attempts=1)) as client:
            simple = client.predict("iris", ROW)
            print(f"Predict: prediction {simple.prediction[0]:.0f}, probabilities {joined(simple.probabilities)}")
            outputs = client.infer("iris", {"X": np.array([ROW], np.float32)})
            print(f"ModelInfer: label {outputs['label'][0]}, probabilities {joined(outputs['probabilities'][0])}")
    except NexusClientError as error:
        sys.exit(f"client: {address} answered {error.code}: {error.message}")


def joined(values: np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    main()
