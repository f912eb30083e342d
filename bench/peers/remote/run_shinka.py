"""Starts ShinkaEvolve with the settings that the bench wrote: python shinka.py SETTINGS.json. Runs under its Python."""

import json
import random
import sys
from pathlib import Path

import numpy as np
from shinka.core import EvolutionConfig, ShinkaEvolveRunner
from shinka.database import DatabaseConfig
from shinka.launch import LocalJobConfig


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    random.seed(given["seed"])
    np.random.seed(given["seed"])
    runner = ShinkaEvolveRunner(
        evo_config=EvolutionConfig(**given["evolution"]),
        job_config=LocalJobConfig(**given["job"]),
        db_config=DatabaseConfig(**given["database"]),
        **given["runner"],
    )
    runner.run()


if __name__ == "__main__":
    main()
