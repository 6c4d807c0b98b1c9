"""What `make run` does, on the project in the folder given, with retries that do not wait."""

import os
import sys
from datetime import timedelta
from pathlib import Path

from tasks.runtime.environment import embedded
from tasks.runtime.run import main

if __name__ == "__main__":
    project = Path(sys.argv[1])
    os.environ.update(embedded(project))
    from dags import policies

    policies.DEFAULTS["retry_delay"] = timedelta(0)
    sys.exit(main(["run"], project))
