"""No test reaches the network: set before anything imports the hub's client."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
