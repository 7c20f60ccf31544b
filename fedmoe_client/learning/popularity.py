"""What ranking by popularity reaches: ``python -m fedmoe_client.learning.popularity < SETTINGS_AS_JSON``.

For those who compare with it and have not loaded the evaluator: a program of its own, which prints JSON.
"""

from __future__ import annotations

import json
import sys

from data.registry import load_dataset
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import popularity_metrics


def main(document: str) -> None:
    """Print the means over all users on validation and test, by name."""
    settings = Settings.model_validate_json(document)
    known = load_dataset(settings).interactions
    print(json.dumps(popularity_metrics(known, settings.evaluation, settings.seed)))


if __name__ == "__main__":
    main(sys.stdin.read())
