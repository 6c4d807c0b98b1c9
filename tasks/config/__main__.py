"""Write the schema of Airflow's trigger form to ``dags/form.json``."""

import json
from pathlib import Path

from tasks.config.trigger_form import form_schema

target = Path(__file__).resolve().parents[2] / "dags" / "form.json"
target.write_text(json.dumps(form_schema(), indent=2) + "\n")
