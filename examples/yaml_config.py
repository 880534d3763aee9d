"""Standard logging, configured by a YAML file with options of the handler.

Run it:

    python -m pip install pyyaml
    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    python examples/yaml_config.py
"""

import logging.config
from pathlib import Path

import yaml

logger = logging.getLogger("ingester")


def main() -> None:
    """Log an ordinary line and an event."""
    config = Path(__file__).with_name("logging.yaml")
    logging.config.dictConfig(yaml.safe_load(config.read_text(encoding="utf-8")))

    logger.info("connected")
    extra = {"event_type": "email.received", "payload": {"subject": "My results"}}
    logger.info("email received", extra=extra)


if __name__ == "__main__":
    main()
